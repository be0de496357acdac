"""Fifty Qwen2.5-0.5B r 8 adapters (17.6 MB each) into the store: time per adapter and peak memory against ten of them.

Memory is the growth of the resident set over what it was before the call, at its peak, in a process that does nothing
else; it counts the pages of mapped files. Wants 3 GB of disk.

Usage: python benchmarks/bench_store.py
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from lora_tokenizer import TokenLayout, write_adapter
from measuring import in_fresh_process, qwen_adapter

BUILD = """
import shutil, sys, time
from pathlib import Path
import torch
from lora_tokenizer import TokenLayout, TokenStore, find_adapters
root, count = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
layout = TokenLayout.from_json((root / "layout.json").read_text())
paths = find_adapters(root / "zoo")[:count]
store = TokenStore(root / "store")
reset_peak()
before = peak()
start = time.perf_counter()
tokens = store.get(paths, layout)
built = time.perf_counter() - start
grown = peak() - before
start = time.perf_counter()
again = store.get(paths, layout)
opened = time.perf_counter() - start
start = time.perf_counter()
store.get(paths, layout, verify=False)
unverified = time.perf_counter() - start
shutil.rmtree(store.folder)
print(grown, built * 1e3 / count, opened * 1e3, unverified * 1e3)
"""


def main() -> None:
    torch.manual_seed(0)
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for index in range(50):
            adapter = qwen_adapter()
            write_adapter(adapter, root / "zoo" / f"checkpoint-{index}")
        (root / "layout.json").write_text(TokenLayout.from_adapter(adapter, max_tokens="auto").to_json())
        rounds = [{count: in_fresh_process(BUILD, root, count) for count in (10, 50)} for _ in range(3)]
        for count in (10, 50):
            grown, built, opened, unverified = map(statistics.median, zip(*(r[count] for r in rounds), strict=True))
            peaks[count] = grown
            each = ", ".join(f"{r[count][0]:.1f}" for r in rounds)
            print(
                f"{count} adapters: peak extra memory {grown:6.1f} MB ({each}), {built:6.1f} ms each to build, "
                f"{opened:7.1f} ms to open with checksums, {unverified:5.1f} ms without"
            )
    print(f"peak memory of 50 is {peaks[50] / peaks[10]:.2f} x that of 10 (bar: does not grow)")


if __name__ == "__main__":
    main()
