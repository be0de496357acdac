"""How fast ``collect`` trains many adapters at once, beside the plain script that PEFT's documentation shows.

    python packages/loragen-train/benchmarks/bench_collect.py
    python packages/loragen-train/benchmarks/bench_collect.py --tasks 32 --steps 32   (for a GPU)

SmolLM2-135M-Instruct, r 4 on q_proj and v_proj, batches of 8, tasks of reasoning-gym. The plain script trains one
adapter with ``get_peft_model`` and the transformers Trainer, once as it stands (float32) and once with ``bf16=True``;
collect trains one at a time and all at once, in the same precisions. All see the same samples in the same order. Times
are of the training steps only. A round is one training of each; ratios are medians over the rounds.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
Measure = Callable[..., tuple[float, float, int]]
NAMES = (
    "gcd", "lcm", "complex_arithmetic", "letter_counting", "simple_equations", "chain_sum", "basic_arithmetic",
    "count_bits", "base_conversion", "spell_backward", "prime_factorization", "leg_counting",
)  # fmt: skip


def read_tasks(config: Any, folder: Path, tokenizer: Any, *, num_words: int = 0) -> list[Any]:
    """The tasks as collect trains on them, with an instruction of so many words before each prompt, another for each
    task; names that repeat have samples of another seed."""
    import json
    from dataclasses import asdict, replace

    from loragen_train.prompts.splits import read_task_samples
    from loragen_train.zoo.items import tokenize_task

    tasks = []
    for number, task in enumerate(config.tasks):
        for part, samples in zip(("train", "test"), read_task_samples(task, seed=number), strict=True):
            file = folder / part / f"{task.name}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            instruction = f"{task.name}:{' read' * num_words}\n" if num_words else ""
            rows = [asdict(replace(sample, prompt=instruction + sample.prompt)) for sample in samples]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks.append(tokenize_task(task, config, folder, tokenizer))
    return tasks


def train_plainly(task: Any, base: Path, steps: int, *, bf16: bool) -> tuple[float, float, int]:
    """Seconds, CPU seconds and tokens of the script in PEFT's documentation."""
    import torch
    from loragen_train.zoo.train_lora import order_of_samples
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    order = order_of_samples([len(item.input_ids) for item in task.train], steps * 8, 8, 0)
    items = [task.train[index] for index in order]
    rows = [
        {"input_ids": item.input_ids, "labels": [-100] * item.num_prompt_tokens + item.response_ids} for item in items
    ]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    adapted = get_peft_model(model, lora)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            learning_rate=2e-3,
            per_device_train_batch_size=8,
            max_steps=steps,
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
        )

        class Watch(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == 1:  # the first step warms up
                    self.started, self.cpu_started = time.perf_counter(), time.process_time()

            def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.seconds = time.perf_counter() - self.started
                self.cpu_seconds = time.process_time() - self.cpu_started

        watch = Watch()
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
        trainer = Trainer(model=adapted, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[watch])
        trainer.train()
    return watch.seconds, watch.cpu_seconds, sum(len(item.input_ids) for item in items[8:])


def train_at_once(
    tasks: list[Any], frozen: Any, config: Any, initial: Any, fabric: Any, steps: int
) -> tuple[float, float, int]:
    """Seconds, CPU seconds and tokens of collect's own training, of which the first step warms up too."""
    from loragen_train.zoo import train_lora

    with tempfile.TemporaryDirectory() as folder:
        run = train_lora._Run(
            tasks, frozen, config, initial=initial, num_steps=steps, folder=Path(folder), fabric=fabric
        )
        run.advance()
        started, cpu_started = time.perf_counter(), time.process_time()
        for _ in range(steps - 1):
            run.advance()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        tokens = sum(len(item.input_ids) for batches in run._batches for batch in batches[1:] for item in batch)
    return seconds, cpu_seconds, tokens


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(description="Compare collect with the plain script of PEFT's documentation.")
    parser.add_argument("--tasks", type=int, default=8, help="adapters trained at once")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps of each training, the first not timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"], choices=["bf16", "fp32"])
    options = parser.parse_args()

    import torch
    from lora_tokenizer import read_adapter
    from loragen_infer.models.base_model import save_base_model
    from loragen_infer.zoo import INITIAL_NAME
    from loragen_train.configs.collect import CollectConfig, CollectTask, LoraTraining
    from loragen_train.zoo.initial import load_frozen
    from loragen_train.zoo.process import fabric_of_process

    fabric = fabric_of_process()
    device = torch.cuda.get_device_name() if fabric.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{options.tasks} adapters, {options.steps} steps of batch 8, {device}, torch {torch.__version__}")
    described = [
        CollectTask(
            name=f"task{number}", source=f"reasoning-gym:{NAMES[number % len(NAMES)]}", num_train=64, num_test=8
        )
        for number in range(options.tasks)
    ]
    with tempfile.TemporaryDirectory() as root:
        base = save_base_model(MODEL, Path(root) / "base")
        for precision in options.precisions:
            training = LoraTraining(max_steps=options.steps, save_every=options.steps, precision=precision)
            config = CollectConfig(base_model=str(base), tasks=described, training=training)
            folder = Path(root) / precision
            folder.mkdir()
            frozen = load_frozen(config, folder, fabric)
            tasks = read_tasks(config, folder, frozen.tokenizer)
            frozen.choose_attention([task.train for task in tasks])
            print(f"collect in {precision}")
            plain = partial(train_plainly, base=base, steps=options.steps)
            initial = read_adapter(folder / INITIAL_NAME)
            ours = partial(
                train_at_once, frozen=frozen, config=config, initial=initial, fabric=fabric, steps=options.steps
            )
            compare(options.rounds, precision, tasks, plain, ours)
            del frozen
    if fabric.device.type == "cuda":
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


def compare(rounds: int, precision: str, tasks: list[Any], plain: Measure, ours: Measure) -> None:
    """Run every training once a round, and print tokens per second, of wall and CPU time, and their ratios."""
    trainings: dict[str, Measure] = {"plain": lambda task: plain(task, bf16=False)}
    if precision == "bf16":
        trainings["plain, bf16=True"] = lambda task: plain(task, bf16=True)
    trainings["collect, one"] = lambda task: ours([task])
    trainings[f"collect, {len(tasks)}"] = lambda _: ours(tasks)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in trainings}
    for number in range(rounds):
        for name, train in trainings.items():
            seconds, cpu_seconds, tokens = train(tasks[number % len(tasks)])
            rates[name].append((tokens / seconds, tokens / cpu_seconds))
    for name, measured in rates.items():
        wall, cpu = (statistics.median(rate[part] for rate in measured) for part in (0, 1))
        line = f"  {name:<18}{wall:8.0f} tokens/s {cpu:8.0f} tokens/CPU s"
        if name.startswith("collect"):
            for other in (known for known in rates if known.startswith("plain")):
                pairs = list(zip(measured, rates[other], strict=True))
                by_wall, by_cpu = (statistics.median(own[part] / its[part] for own, its in pairs) for part in (0, 1))
                line += f"   {by_wall:.2f} ({by_cpu:.2f} by CPU time) times {other!r}"
        print(line)


if __name__ == "__main__":
    main()
