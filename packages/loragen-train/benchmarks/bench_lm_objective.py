"""How fast a generator is trained through the language model, beside ``collect`` on the same samples, and its memory.

    python packages/loragen-train/benchmarks/bench_lm_objective.py [--instruction 100]

SmolLM2-135M-Instruct, r 4 on q_proj and v_proj, tasks of reasoning-gym. ``collect`` trains 8 adapters at once with
batches of 8; the objective ``lm`` takes steps of 4 tasks with 4 samples each, generator and optimizer included, for as
many tokens. Rounds alternate between the two, and the ratio is the median over the rounds. Peak memory is that of a
process of its own, the loaded model and all libraries included. With ``--instruction`` each prompt of a task begins
with so many words, which count among the tokens.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from bench_collect import MODEL, NAMES, read_tasks, train_at_once

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

NUM_TASKS = 8
TASKS_PER_STEP, SAMPLES_PER_TASK = 4, 4
CONDITION_DIM, NUM_PROMPTS = 384, 8


class Bench:
    """The parts of both trainings, on one frozen model."""

    def __init__(
        self, base: Path, folder: Path, *, precision: Literal["bf16", "fp32"], steps: int, num_words: int
    ) -> None:
        from loragen_train.configs.collect import CollectConfig, CollectTask, LoraTraining
        from loragen_train.zoo.initial import load_frozen
        from loragen_train.zoo.process import fabric_of_process

        described = [
            CollectTask(name=f"task{number}", source=f"reasoning-gym:{NAMES[number]}", num_train=64, num_test=8)
            for number in range(NUM_TASKS)
        ]
        training = LoraTraining(max_steps=steps, save_every=steps, precision=precision)
        self.config = CollectConfig(base_model=str(base), tasks=described, training=training)
        self.folder, self.fabric = folder, fabric_of_process()
        self.frozen = load_frozen(self.config, folder, self.fabric)
        self.tasks = read_tasks(self.config, folder, self.frozen.tokenizer, num_words=num_words)
        self.steps = steps

    def collect(self) -> float:
        """Tokens per second of collect."""
        from lora_tokenizer import read_adapter
        from loragen_infer.zoo import INITIAL_NAME

        self.frozen.choose_attention([task.train for task in self.tasks])
        initial = read_adapter(self.folder / INITIAL_NAME)
        seconds, _, tokens = train_at_once(self.tasks, self.frozen, self.config, initial, self.fabric, self.steps)
        return tokens / seconds

    def lm(self, num_steps: int) -> float:
        """Tokens per second of the objective, without the first step, which warms up."""
        import torch
        from loragen_train.configs.training import TrainingConfig
        from loragen_train.training.optimization import make_optimizer

        table, objective, generator, batches = self._parts(num_steps)
        optimizer = make_optimizer(generator.parameters(), TrainingConfig(learning_rate=1e-4))
        condition_BPD = torch.randn(TASKS_PER_STEP, NUM_PROMPTS, CONDITION_DIM, device=self.fabric.device)
        tokens, started = 0, 0.0
        for number, batch in enumerate(batches):
            if number == 1:
                started = time.perf_counter()
            loss = objective(generator(condition_BPD).float(), batch, is_training=True, is_measured=False)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if number:
                tokens += sum(len(table.items[sample].input_ids) for sample in batch.samples.flatten().tolist())
        loss.item()  # an accelerator is done now
        return tokens / (time.perf_counter() - started)

    def _parts(self, num_steps: int) -> tuple[Any, Any, Any, Any]:
        import itertools

        import torch
        from hyperconv import GeneratorConfig, HyperConvGenerator
        from lora_tokenizer import TokenLayout, TokenStats, read_adapter
        from loragen_infer.samples import read_examples
        from loragen_infer.zoo import INITIAL_NAME
        from loragen_train.configs.objectives import LmConfig
        from loragen_train.prompts.table import TaskPrompts
        from loragen_train.training.objectives import LmObjective
        from loragen_train.training.samples import SampleTable, TaskVisits
        from loragen_train.training.through_lm import AdapterTokens, ThroughLm
        from loragen_train.training.visits import VisitLoader

        torch.manual_seed(0)
        layout = TokenLayout.from_adapter(read_adapter(self.folder / INITIAL_NAME), token_dim=384, max_tokens="auto")
        tokens_NW = layout.encode(read_adapter(self.folder / INITIAL_NAME)).float()
        stats = TokenStats.from_tokens([tokens_NW + 0.01 * torch.randn_like(tokens_NW) for _ in range(4)])
        names = [task.name for task in self.config.tasks]
        samples = {name: dict(enumerate(read_examples(self.folder / "train" / f"{name}.jsonl"))) for name in names}
        prompts = TaskPrompts(train={}, val={}, train_samples=samples)  # type: ignore[arg-type]  # places are numbers
        table = SampleTable(prompts, self.frozen.tokenizer, LmConfig())
        through = ThroughLm(self.frozen, AdapterTokens(layout), table.items)
        objective = LmObjective(through, table, stats).to(self.fabric.device)
        network = GeneratorConfig(
            condition_dim=CONDITION_DIM, grid=layout.grid[:2], output_dim=384, num_basis=41, num_hyperconv_blocks=0
        )
        generator = HyperConvGenerator(network).to(self.fabric.device)
        known = {name: range(NUM_PROMPTS) for name in names}
        none = [-1] * len(names)
        visits = TaskVisits(names, none, none, known, table.train, table.train, NUM_PROMPTS, SAMPLES_PER_TASK, 0, "0")
        loader = VisitLoader(visits, TASKS_PER_STEP, "0", shuffle=True)
        batches = itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), num_steps)
        moved = (type(batch)(*(part.to(self.fabric.device) for part in batch)) for batch in batches)
        return table, objective, generator, moved


def main() -> None:
    """Run what the options ask for."""
    parser = argparse.ArgumentParser(description="Compare training through the language model with collect.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps of collect, the first not timed")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--instruction", type=int, default=0, help="words before each prompt of a task")
    parser.add_argument("--memory-with", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()

    import torch
    from loragen_infer.models.base_model import save_base_model

    with tempfile.TemporaryDirectory() as root:
        base = options.memory_with or save_base_model(MODEL, Path(root) / "base")
        folder = Path(root) / "zoo"
        folder.mkdir()
        bench = Bench(base, folder, precision=options.precision, steps=options.steps, num_words=options.instruction)
        if options.memory_with is not None:
            bench.lm(3)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
            return
        # As many samples in both: 64 in a step of collect, 16 in one of the objective.
        num_steps = 1 + (options.steps - 1) * NUM_TASKS * 8 // (TASKS_PER_STEP * SAMPLES_PER_TASK)
        pairs = [(bench.collect(), bench.lm(num_steps)) for _ in range(options.rounds)]
        words = [sys.executable, __file__, "--memory-with", str(base), "--precision", options.precision]
        words += ["--instruction", str(options.instruction)]
        child = subprocess.run(words, check=True, capture_output=True, text=True)  # noqa: S603  # this very file
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads"
    print(f"{options.precision}, {device}, torch {torch.__version__}")
    for name, rates in zip(("collect", "lm"), zip(*pairs, strict=True), strict=True):
        print(f"  {name:<8}{statistics.median(rates):8.0f} tokens/s ({', '.join(f'{rate:.0f}' for rate in rates)})")
    print(
        f"lm processes {statistics.median(lm / collect for collect, lm in pairs):.2f} of collect's tokens (bar: 0.85)"
    )
    print(f"peak memory with steps of 16 samples: {float(child.stdout.split()[-1]):.2f} GiB (bar: 3)")
    if cuda:
        print(f"peak GPU memory of all of it {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
