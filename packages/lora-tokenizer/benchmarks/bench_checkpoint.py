"""LoRA out of a Lightning checkpoint of about 1 GB: time against torch.load of the whole, and peak extra memory.

The checkpoint holds base weights (960 MB in bfloat16), a LoRA adapter (r 8 on q_proj and v_proj of 24 layers, float32),
its Adam state and hyper-parameters of classes that are not installed where it is read. Memory is the growth of the peak
resident set of a process that does nothing else.

Usage: python benchmarks/bench_checkpoint.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lora_tokenizer import read_adapter

READ = """
import sys, time
import torch
from lora_tokenizer import read_adapter
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
before = peak()
adapter = read_adapter(sys.argv[1])
total = sum(float(tensor.sum()) for tensor in adapter.tensors.values())
print(peak() - before, adapter.num_parameters)
"""


def write_checkpoint(path: Path) -> None:
    """A checkpoint such as Lightning's ModelCheckpoint writes from a training of LoRA."""
    state, optimizer = {}, {}
    for layer in range(24):
        base = f"model.base_model.model.model.layers.{layer}."
        for index, (rows, columns) in enumerate([(4864, 896), (4864, 896), (896, 4864), (896, 896), (896, 896)]):
            state[f"{base}mlp.part_{index}.weight"] = torch.randn(rows, columns).bfloat16()
        state[f"{base}mlp.experts.weight"] = torch.randn(5200, 896).bfloat16()
        for name, num_out in (("q_proj", 896), ("v_proj", 128)):
            state[f"{base}self_attn.{name}.base_layer.weight"] = torch.randn(num_out, 896).bfloat16()
            state[f"{base}self_attn.{name}.lora_A.default.weight"] = torch.randn(8, 896)
            state[f"{base}self_attn.{name}.lora_B.default.weight"] = torch.randn(num_out, 8)
    for index, (name, value) in enumerate(state.items()):
        if ".lora_" in name:
            optimizer[index] = {
                "step": torch.tensor(1.0),
                "exp_avg": torch.zeros_like(value),
                "exp_avg_sq": torch.zeros_like(value),
            }
    embedding = {"model.base_model.model.model.embed_tokens.weight": torch.randn(48_000, 896).bfloat16()}
    settings = argparse.Namespace(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    checkpoint = {
        "epoch": 3,
        "state_dict": {**embedding, **state},
        "optimizer_states": [{"state": optimizer, "param_groups": [{"lr": 1e-4}]}],
        "hyper_parameters": {"lora": settings, "seed": 1},
    }
    torch.save(checkpoint, path)


def median(function: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
        del result
    return statistics.median(times)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "last.ckpt"
        write_checkpoint(path)
        print(f"checkpoint of {path.stat().st_size / 1e9:.2f} GB")
        ours = median(lambda: read_adapter(path), 9)
        whole = median(lambda: torch.load(path, weights_only=False), 3)
        with torch.serialization.safe_globals([argparse.Namespace]):
            mapped = median(lambda: torch.load(path, weights_only=True, mmap=True), 5)
        print(f"read_adapter                    {ours * 1e3:9.1f} ms")
        print(f"torch.load of the whole         {whole * 1e3:9.1f} ms  {whole / ours:6.1f} x read_adapter (bar: 10)")
        print(f"torch.load, mapped              {mapped * 1e3:9.1f} ms  {mapped / ours:6.1f} x read_adapter")
        command = [sys.executable, "-c", READ, str(path)]
        grown, values = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()  # noqa: S603 (our own code above)
        print(f"peak extra memory of the reader {float(grown):9.1f} MB  for {int(values):,} LoRA values (bar: 64 MB)")


if __name__ == "__main__":
    main()
