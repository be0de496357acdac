"""Fifty Qwen2.5-0.5B r 8 adapters (17.6 MB each) into the store: time per adapter and peak memory against ten of them.

Memory is the growth of the peak resident set of a process that does nothing else. Wants 3 GB of disk.

Usage: python benchmarks/bench_store.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from bench_encode_decode import qwen_adapter
from lora_tokenizer import TokenLayout, write_adapter

BUILD = """
import sys, time
from pathlib import Path
import torch
from lora_tokenizer import TokenLayout, TokenStore, find_adapters
root, count = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(2)
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
layout = TokenLayout.from_json((root / "layout.json").read_text())
paths = find_adapters(root / "zoo")[:count]
store = TokenStore(root / f"store-{count}")
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
print(grown, built, opened, time.perf_counter() - start)
"""


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for index in range(50):
            adapter = qwen_adapter()
            write_adapter(adapter, root / "zoo" / f"checkpoint-{index}")
        (root / "layout.json").write_text(TokenLayout.from_adapter(adapter, max_tokens="auto").to_json())
        peaks = []
        for count in (10, 50):
            command = [sys.executable, "-c", BUILD, str(root), str(count)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 (our own code above)
            grown, built, opened, unverified = map(float, output.split())
            peaks.append(grown)
            print(
                f"{count} adapters: peak extra memory {grown:6.1f} MB, {built / count * 1e3:6.1f} ms each to build, "
                f"{opened * 1e3:7.1f} ms to open with checksums, {unverified * 1e3:5.1f} ms without"
            )
        print(f"peak memory of 50 is {peaks[1] / peaks[0]:.2f} x that of 10 (bar: does not grow)")


if __name__ == "__main__":
    main()
