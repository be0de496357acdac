"""What the benchmarks share: an adapter of real shapes, times taken in turns, and peak memory of a fresh process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lora_tokenizer import AdapterConfig, LoraAdapter

SHAPES = {
    "self_attn.q_proj": (896, 896),
    "self_attn.k_proj": (896, 128),
    "self_attn.v_proj": (896, 128),
    "self_attn.o_proj": (896, 896),
    "mlp.gate_proj": (896, 4864),
    "mlp.up_proj": (896, 4864),
    "mlp.down_proj": (4864, 896),
}
"""Linear layers of one layer of Qwen2.5-0.5B: name to (in, out)."""
NUM_LAYERS = 24


def qwen_adapter(r: int = 8) -> LoraAdapter:
    """Random values in the shapes of Qwen2.5-0.5B with LoRA on all linear layers: 4,399,104 of them at r 8."""
    tensors = {}
    for layer in range(NUM_LAYERS):
        for name, (num_in, num_out) in SHAPES.items():
            stem = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors[f"{stem}A.weight"] = torch.randn(r, num_in)
            tensors[f"{stem}B.weight"] = torch.randn(num_out, r)
    targets = tuple(name.rpartition(".")[2] for name in SHAPES)
    return LoraAdapter(config=AdapterConfig(r=r, lora_alpha=16, target_modules=targets), tensors=tensors)


@dataclass(frozen=True)
class Ratio:
    """How many times longer one thing takes than another, over all rounds."""

    middle: float
    """Median of the rounds' ratios."""
    best: float
    """Ratio of the shortest times: what is left when nothing else runs."""

    def __str__(self) -> str:
        return f"{self.middle:6.2f} x (of the shortest times {self.best:.2f} x)"


class Times:
    """Seconds of several functions, run in turns so that all see the same state of the machine.

    The first round, which warms caches, does not count.
    """

    def __init__(self, *functions: Callable[[], object], rounds: int) -> None:
        self.seconds: list[list[float]] = [[] for _ in functions]
        for number in range(rounds + 1):
            for function, taken in zip(functions, self.seconds, strict=True):
                start = time.perf_counter()
                result = function()
                if number:
                    taken.append(time.perf_counter() - start)
                del result

    def middle_ms(self, index: int) -> float:
        """Median of one function in milliseconds."""
        return statistics.median(self.seconds[index]) * 1e3

    def ratio(self, upper: int, lower: int) -> Ratio:
        """The time of function `upper` in times of function `lower`."""
        pairs = zip(self.seconds[upper], self.seconds[lower], strict=True)
        middle = statistics.median(one / other for one, other in pairs)
        return Ratio(middle, min(self.seconds[upper]) / min(self.seconds[lower]))


PEAK = """
def reset_peak():
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
"""
"""To go before a script: the peak of the resident set in MB since `reset_peak`."""


def in_fresh_process(script: str, *arguments: object) -> list[float]:
    """Numbers that a script prints on its last line, run with `PEAK` by a process that does nothing else."""
    command = [sys.executable, "-c", PEAK + script, *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 (our own code)
    return [float(number) for number in output.splitlines()[-1].split()]
