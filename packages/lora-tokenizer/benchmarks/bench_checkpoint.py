"""LoRA out of a Lightning checkpoint of about 1 GB: time against torch.load of the whole, and peak extra memory.

The checkpoint is what Lightning writes from a LoRA training of Qwen2.5-0.5B: all base weights (988 MB in bfloat16), the
adapter of r 8 on all linear layers (4,399,104 values in float32), its Adam state, and hyper-parameters of classes
that need not be installed where it is read. Memory is the growth of the resident set over what it was before the call,
at its peak, in a process that does nothing else, with every value of the adapter read.

Usage: python benchmarks/bench_checkpoint.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from lora_tokenizer import read_adapter
from measuring import NUM_LAYERS, SHAPES, Times, in_fresh_process, qwen_adapter

READ = """
import sys
import torch
from lora_tokenizer import read_adapter
read_adapter
reset_peak()
before = peak()
adapter = read_adapter(sys.argv[1])
assert adapter.num_parameters == 4_399_104
total = sum(float(tensor.sum()) for tensor in adapter.tensors.values())
print(peak() - before)
"""


def write_checkpoint(path: Path) -> None:
    """A checkpoint such as Lightning's ModelCheckpoint writes from a training of LoRA."""
    before, vocabulary = "model.base_model.model.model.", 151_936
    state = {f"{before}embed_tokens.weight": torch.randn(vocabulary, 896, dtype=torch.bfloat16)}
    for layer in range(NUM_LAYERS):
        for name, (num_in, num_out) in SHAPES.items():
            weight = torch.randn(num_out, num_in, dtype=torch.bfloat16)
            state[f"{before}layers.{layer}.{name}.base_layer.weight"] = weight
            if name.endswith(("q_proj", "k_proj", "v_proj")):
                state[f"{before}layers.{layer}.{name}.base_layer.bias"] = torch.zeros(num_out, dtype=torch.bfloat16)
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{before}layers.{layer}.{name}.weight"] = torch.ones(896, dtype=torch.bfloat16)
    optimizer = {}
    for index, (name, value) in enumerate(qwen_adapter().tensors.items()):
        state[f"model.{name}".replace(".weight", ".default.weight")] = value
        moments = {"exp_avg": torch.zeros_like(value), "exp_avg_sq": torch.zeros_like(value)}
        optimizer[index] = {"step": torch.tensor(1.0), **moments}
    targets = [name.rpartition(".")[2] for name in SHAPES]
    checkpoint = {
        "epoch": 3,
        "state_dict": state,
        "optimizer_states": [{"state": optimizer, "param_groups": [{"lr": 1e-4, "params": list(optimizer)}]}],
        "hyper_parameters": {"lora": argparse.Namespace(r=8, lora_alpha=16, target_modules=targets), "seed": 1},
    }
    torch.save(checkpoint, path)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "last.ckpt"
        write_checkpoint(path)
        print(f"checkpoint of {path.stat().st_size / 1e9:.2f} GB")
        with torch.serialization.safe_globals([argparse.Namespace]):
            times = Times(
                lambda: read_adapter(path),
                lambda: torch.load(path, weights_only=False),
                lambda: torch.load(path, weights_only=True, mmap=True),
                rounds=9,
            )
        print(f"read_adapter                    {times.middle_ms(0):9.1f} ms")
        print(f"torch.load of the whole         {times.middle_ms(1):9.1f} ms  {times.ratio(1, 0)} as long, bar 10")
        print(f"torch.load, mapped              {times.middle_ms(2):9.1f} ms  {times.ratio(2, 0)} as long")
        grown = [in_fresh_process(READ, path)[0] for _ in range(5)]
        print(f"peak extra memory of the reader {statistics.median(grown):9.1f} MB, at most {max(grown):.1f}, bar 64")


if __name__ == "__main__":
    main()
