"""Time of encode, decode and load + encode against the plain operations on the same bytes; prints ratios.

The adapter is that of Qwen2.5-0.5B with r 8 on all linear layers: 336 float32 tensors, 4,399,104 values. The per-chunk
tokenizer is what one would write first: a Python loop over tokens. The layout "turned" lays B out transposed, in tokens
that divide every row. The first call in a fresh process pays for memory
that the system has yet to hand out and for names and headers that were never seen; it is shown apart.

Usage: python benchmarks/bench_encode_decode.py
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from lora_tokenizer import LoraAdapter, TokenLayout, read_adapter, write_adapter
from measuring import Times, in_fresh_process, qwen_adapter
from safetensors.torch import load_file
from torch import Tensor

FIRST = """
import sys, time
from pathlib import Path
import torch
from lora_tokenizer import TokenLayout, read_adapter
from safetensors.torch import load_file
torch.set_num_threads(1)
folder = Path(sys.argv[1])
layout = TokenLayout.from_json((folder.parent / "layout.json").read_text())
read_adapter, load_file, layout.encode
start = time.perf_counter()
if sys.argv[2] == "encode":
    layout.encode(read_adapter(folder))
else:
    load_file(folder / "adapter_model.safetensors")
print((time.perf_counter() - start) * 1e3)
"""


def per_chunk(adapter: LoraAdapter, token_dim: int) -> Tensor:
    """One token at a time."""
    tokens = []
    for tensor in adapter.tensors.values():
        flat = tensor.flatten().tolist()
        for start in range(0, len(flat), token_dim):
            chunk = flat[start : start + token_dim]
            tokens.append(torch.tensor(chunk + [0.0] * (token_dim - len(chunk))))
    return torch.stack(tokens)


def measure(adapter: LoraAdapter, layout: TokenLayout, turned: TokenLayout, folder: Path) -> None:
    """Print the times and ratios at the present number of threads."""
    tokens, turned_tokens = layout.encode(adapter), turned.encode(adapter)
    flat = torch.cat([tensor.flatten() for tensor in adapter.tensors.values()])
    copies = Times(
        flat.clone,
        lambda: layout.encode(adapter),
        lambda: layout.decode(tokens),
        lambda: turned.encode(adapter),
        lambda: turned.decode(turned_tokens),
        rounds=60,
    )
    file = folder / "adapter_model.safetensors"
    loads = Times(lambda: load_file(file), lambda: layout.encode(read_adapter(folder)), rounds=60)
    print(f"{torch.get_num_threads()} thread(s)")
    print(f"  torch.clone of the same bytes  {copies.middle_ms(0):8.2f} ms")
    print(f"  encode                         {copies.middle_ms(1):8.2f} ms  {copies.ratio(1, 0)}, bar 4")
    print(f"  decode                         {copies.middle_ms(2):8.2f} ms  {copies.ratio(2, 0)}, bar 4")
    print(f"  encode, turned                 {copies.middle_ms(3):8.2f} ms  {copies.ratio(3, 0)}")
    print(f"  decode, turned                 {copies.middle_ms(4):8.2f} ms  {copies.ratio(4, 0)}")
    print(f"  safetensors load_file          {loads.middle_ms(0):8.2f} ms")
    print(f"  read_adapter + encode          {loads.middle_ms(1):8.2f} ms  {loads.ratio(1, 0)}, bar 1.5")


def main() -> None:
    torch.manual_seed(0)
    adapter = qwen_adapter()
    layout = TokenLayout.from_adapter(adapter, max_tokens="auto")
    turned = TokenLayout.from_adapter(adapter, token_dim=128, max_tokens="auto", transpose_b=True)
    print(f"{adapter.num_parameters:,} values, {layout.num_tokens:,} tokens, padding {layout.padding:.2%}")
    with tempfile.TemporaryDirectory() as root:
        folder = write_adapter(adapter, Path(root) / "adapter")
        (Path(root) / "layout.json").write_text(layout.to_json())
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            measure(adapter, layout, turned, folder)
        first = {what: [in_fresh_process(FIRST, folder, what)[0] for _ in range(5)] for what in ("encode", "load")}
    encode, load = statistics.median(first["encode"]), statistics.median(first["load"])
    print("first call in a fresh process, 1 thread")
    print(f"  safetensors load_file          {load:8.2f} ms, none of the values read yet")
    print(f"  read_adapter + encode          {encode:8.2f} ms  {encode / load:6.2f} x")
    torch.set_num_threads(1)
    chunks = Times(lambda: per_chunk(adapter, layout.token_dim), lambda: layout.encode(adapter), rounds=3)
    print(f"per-chunk Python tokenizer       {chunks.middle_ms(0):8.2f} ms  {chunks.ratio(0, 1)} encode")


if __name__ == "__main__":
    main()
