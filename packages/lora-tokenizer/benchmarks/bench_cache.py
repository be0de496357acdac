"""Fifty checkpoints of 1 GB through the cache: the first start against the second, and peak memory against ten of them.

The checkpoints are those of `bench_checkpoint`: one real file and, to spare the disk, links to it, which count as
checkpoints of their own. Memory is the growth of the resident set over what it was before the call, at its peak, in a
process that does nothing else; it counts the pages of mapped files. Wants 2 GB of disk.

Usage: python benchmarks/bench_cache.py
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from bench_checkpoint import write_checkpoint
from lora_tokenizer import TokenLayout, read_adapter
from measuring import in_fresh_process

BUILD = """
import shutil, sys, time
from pathlib import Path
import torch
from lora_tokenizer import TokenCache, TokenLayout
root, count = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
layout = TokenLayout.from_json((root / "layout.json").read_text())
paths = [root / f"step={index}.ckpt" for index in range(count)]
cache = TokenCache(root / "cache")
reset_peak()
before = peak()
start = time.perf_counter()
tokens = cache.get(paths, layout)
first = time.perf_counter() - start
grown = peak() - before
start = time.perf_counter()
again = cache.get(paths, layout)
again[0].sum()
second = time.perf_counter() - start
shutil.rmtree(cache.folder)
print(grown, first * 1e3, second * 1e3)
"""


def main() -> None:
    torch.manual_seed(0)
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_checkpoint(root / "step=0.ckpt")
        for index in range(1, 50):
            (root / f"step={index}.ckpt").hardlink_to(root / "step=0.ckpt")
        layout = TokenLayout.from_adapter(read_adapter(root / "step=0.ckpt"), max_tokens="auto")
        (root / "layout.json").write_text(layout.to_json())
        rounds = [{count: in_fresh_process(BUILD, root, count) for count in (10, 50)} for _ in range(3)]
        for count in (10, 50):
            grown, first, second = map(statistics.median, zip(*(r[count] for r in rounds), strict=True))
            peaks[count] = grown
            print(
                f"{count} checkpoints: first start {first:8.0f} ms, second {second:6.1f} ms ({first / second:5.0f} x "
                f"faster, bar 10), peak extra memory {grown:6.1f} MB"
            )
    print(f"peak memory of 50 is {peaks[50] / peaks[10]:.2f} x that of 10 (bar: does not grow)")


if __name__ == "__main__":
    main()
