"""Time of encode, decode and load + encode against the plain operations on the same bytes; prints ratios.

The adapter is that of Qwen2.5-0.5B with r 8 on all linear layers: 336 float32 tensors, 4,399,104 values. The per-chunk
tokenizer is what one would write first: a Python loop over tokens. Two threads copy in parallel only while two cores
are free; where other work runs, the figures of one thread are the ones to compare.

Usage: python benchmarks/bench_encode_decode.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lora_tokenizer import AdapterConfig, LoraAdapter, TokenLayout, read_adapter, write_adapter
from safetensors.torch import load_file
from torch import Tensor

SHAPES = {
    "self_attn.q_proj": (896, 896),
    "self_attn.k_proj": (896, 128),
    "self_attn.v_proj": (896, 128),
    "self_attn.o_proj": (896, 896),
    "mlp.gate_proj": (896, 4864),
    "mlp.up_proj": (896, 4864),
    "mlp.down_proj": (4864, 896),
}


def qwen_adapter(r: int = 8, num_layers: int = 24) -> LoraAdapter:
    """Random values in the shapes of Qwen2.5-0.5B."""
    tensors = {}
    for layer in range(num_layers):
        for name, (num_in, num_out) in SHAPES.items():
            stem = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors[f"{stem}A.weight"] = torch.randn(r, num_in)
            tensors[f"{stem}B.weight"] = torch.randn(num_out, r)
    targets = tuple(name.rpartition(".")[2] for name in SHAPES)
    return LoraAdapter(config=AdapterConfig(r=r, lora_alpha=16, target_modules=targets), tensors=tensors)


def per_chunk(adapter: LoraAdapter, token_dim: int) -> Tensor:
    """One token at a time."""
    tokens = []
    for tensor in adapter.tensors.values():
        flat = tensor.flatten().tolist()
        for start in range(0, len(flat), token_dim):
            chunk = flat[start : start + token_dim]
            tokens.append(torch.tensor(chunk + [0.0] * (token_dim - len(chunk))))
    return torch.stack(tokens)


def medians(*functions: Callable[[], object], rounds: int = 41) -> list[float]:
    """Median seconds of each, run in turns so that all see the same state of the machine."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            result = function()
            taken.append(time.perf_counter() - start)
            del result
    return [statistics.median(taken[1:]) for taken in times]


def measure(adapter: LoraAdapter, layout: TokenLayout, folder: Path) -> None:
    """Print the times and ratios at the present number of threads."""
    tokens = layout.encode(adapter)
    flat = torch.cat([tensor.flatten() for tensor in adapter.tensors.values()])
    clone, encode, decode = medians(flat.clone, lambda: layout.encode(adapter), lambda: layout.decode(tokens))
    file = folder / "adapter_model.safetensors"
    load, both = medians(lambda: load_file(file), lambda: layout.encode(read_adapter(folder)))
    print(f"{torch.get_num_threads()} thread(s)")
    print(f"  torch.clone of the same bytes  {clone * 1e3:8.2f} ms")
    print(f"  encode                         {encode * 1e3:8.2f} ms  {encode / clone:6.2f} x clone (bar: 4)")
    print(f"  decode                         {decode * 1e3:8.2f} ms  {decode / clone:6.2f} x clone (bar: 4)")
    print(f"  safetensors load_file          {load * 1e3:8.2f} ms")
    print(f"  read_adapter + encode          {both * 1e3:8.2f} ms  {both / load:6.2f} x load_file (bar: 1.5)")


def main() -> None:
    torch.manual_seed(0)
    adapter = qwen_adapter()
    layout = TokenLayout.from_adapter(adapter, max_tokens="auto")
    print(f"{adapter.num_parameters:,} values, {layout.num_tokens:,} tokens, padding {layout.padding:.2%}")
    with tempfile.TemporaryDirectory() as root:
        folder = write_adapter(adapter, Path(root) / "adapter")
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            measure(adapter, layout, folder)
    (chunks,) = medians(lambda: per_chunk(adapter, layout.token_dim), rounds=4)
    print(f"per-chunk Python tokenizer       {chunks * 1e3:8.2f} ms")


if __name__ == "__main__":
    main()
