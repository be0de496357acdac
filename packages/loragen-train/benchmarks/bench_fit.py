"""What training costs besides the arithmetic: time around the generator, the second start, memory; and reconstruction.

    python packages/loragen-train/benchmarks/bench_fit.py
    python packages/loragen-train/benchmarks/bench_fit.py --experiment experiments/zoo_20260101_120000

The first three use random adapters at the seed configuration (512 tokens of 384 values, 3 blocks, batches of 8; 50
checkpoints). The last reads ``results/validation.json`` of a real training: the cosine of the generated weight change
with the mean weight change of each task, from validation prompts.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["SWANLAB_MODE"] = "disabled"

NUM_CHECKPOINTS = 50
NUM_LAYERS, WIDTH, R = 16, 768, 8


def write_zoo(root: Path, num_checkpoints: int) -> None:
    """Adapters of 196,608 values, which fill 512 tokens of 384, and 64 prompts of one task."""
    import torch
    from lora_tokenizer import AdapterConfig, LoraAdapter, write_adapter
    from loragen_train.configs.prepare import PrepareConfig
    from loragen_train.prompts.combine import prepare

    torch.manual_seed(0)
    config = AdapterConfig(r=R, lora_alpha=16, target_modules=("q_proj",), task_type="CAUSAL_LM")
    for number in range(num_checkpoints):
        stem = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        tensors = {
            stem.format(layer, part): torch.randn(*shape)
            for layer in range(NUM_LAYERS)
            for part, shape in (("A", (R, WIDTH)), ("B", (WIDTH, R)))
        }
        write_adapter(LoraAdapter(config=config, tensors=tensors), root / "adapters" / f"checkpoint-{number}")
    samples = root / "task.jsonl"
    samples.write_text("".join(json.dumps({"prompt": f"What is {n} + {n}?"}) + "\n" for n in range(256)))
    prepare([samples], PrepareConfig(output_dir=str(root / "data")))


def fit_config(root: Path, **training: Any) -> Any:
    """The seed configuration on the zoo below ``root``."""
    from loragen_train.configs.fit import DataConfig, FitConfig
    from loragen_train.configs.training import TrainingConfig

    data = DataConfig(
        prompts_dir=str(root / "data"), checkpoint_dir=str(root / "adapters"), cache_dir=str(root / "cache")
    )
    return FitConfig(data=data, training=TrainingConfig(**training), output_dir=str(root / "experiments"))


def time_around_the_generator(root: Path) -> None:
    """Train some epochs and compare their length with forward, backward and optimizer alone."""
    from lightning.pytorch.callbacks import Callback
    from loragen_train.training.fit import fit

    class Stopwatch(Callback):
        """Notes when what begins and ends."""

        def __init__(self) -> None:
            self.inside = 0.0
            self.epochs: list[tuple[float, float]] = []
            self.mark = 0.0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            forward = pl_module.generator.forward

            def timed(*arguments: Any, **named: Any) -> Any:
                started = time.perf_counter()
                try:
                    return forward(*arguments, **named)
                finally:
                    self.inside += time.perf_counter() - started

            pl_module.generator.forward = timed
            # The update follows the backward pass, in the same call of the optimizer.
            trainer.optimizers[0].register_step_post_hook(lambda *_: self.count())

        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
            self.mark = time.perf_counter()

        def count(self) -> None:
            self.inside += time.perf_counter() - self.mark

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.inside, self.started = 0.0, time.perf_counter()

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self.epochs.append((time.perf_counter() - self.started, self.inside))

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if len(self.epochs) <= trainer.current_epoch:
                self.epochs.append((time.perf_counter() - self.started, self.inside))

    stopwatch = Stopwatch()
    fit(fit_config(root, max_epochs=4, validate_every_n_epochs=4), callbacks=[stopwatch])
    shares = [1 - inside / total for total, inside in stopwatch.epochs[1:]]
    seconds = statistics.median(total for total, _ in stopwatch.epochs[1:])
    print(f"an epoch of {NUM_CHECKPOINTS} checkpoints: {seconds:.2f} s")
    print(f"outside of forward, backward and optimizer: {100 * statistics.median(shares):.1f} % (bar: below 5 %)")


def second_start(root: Path) -> None:
    """Tokens and statistics from the checkpoints, and then from the cache."""
    from loragen_train.zoo.tokens import read_zoo

    config = fit_config(root)
    ratios = []
    for attempt in range(3):
        cache = root / f"start-{attempt}"
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            read_zoo(config.data, config.model, ["task"], cache)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1])
        print(f"first start {seconds[0]:.3f} s, second {seconds[1]:.3f} s: {ratios[-1]:.1f} times")
        shutil.rmtree(cache)
    print(f"the second start is {statistics.median(ratios):.1f} times faster (bar: 10)")


def peak_memory(root: Path, num_checkpoints: int) -> float:
    """MiB at most while a process of its own tokenizes a zoo and passes over an epoch, over what it began with."""
    words = [sys.executable, __file__, "--memory-of", str(num_checkpoints), "--root", str(root)]
    child = subprocess.run(words, check=True, capture_output=True, text=True)  # noqa: S603  # this very file
    return float(child.stdout)


def measure_memory(root: Path, num_checkpoints: int) -> float:
    """The child of :func:`peak_memory`."""
    from dataclasses import replace

    from loragen_train.training.pairs import Pairs
    from loragen_train.training.visits import VisitLoader
    from loragen_train.zoo.tokens import read_zoo

    config = fit_config(root)
    data = replace(config.data, max_checkpoints=num_checkpoints)
    # One checkpoint first, so that what is loaded once is not counted.
    read_zoo(replace(data, max_checkpoints=1), config.model, ["task"], root / f"memory-{num_checkpoints}-warm")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    zoo = read_zoo(data, config.model, ["task"], root / f"memory-{num_checkpoints}")
    pairs = Pairs(zoo, {"task": range(64)}, data.prompts_per_condition, "0")
    for _ in VisitLoader(pairs, data.batch_size, "0", shuffle=True):
        pass
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def reconstruction(experiment: Path) -> None:
    """The cosines of a real training."""
    tasks = json.loads((experiment / "results" / "validation.json").read_text())["tasks"]
    for task in tasks:
        print(f"{task['task']}: cosine of the generated with the mean ΔW {task['cosine']:.4f}")
    print(f"lowest {min(task['cosine'] for task in tasks):.4f} (bar: 0.99)")


def main() -> None:
    """Run what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, help="only print the reconstruction of this experiment")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.experiment is not None:
        reconstruction(options.experiment)
        return
    if options.memory_of is not None:
        print(measure_memory(options.root, options.memory_of))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_zoo(root, NUM_CHECKPOINTS)
        second_start(root)
        few, many = peak_memory(root, 10), peak_memory(root, NUM_CHECKPOINTS)
        print(
            f"peak memory of tokenizing and one epoch: 10 checkpoints {few:.0f} MiB, {NUM_CHECKPOINTS} {many:.0f} MiB"
        )
        time_around_the_generator(root)


if __name__ == "__main__":
    main()
