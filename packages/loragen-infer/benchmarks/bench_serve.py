"""Times `loragen-infer serve` on the CPU, clients and server here, at the configuration of bench_generate.py.

Run with: OMP_NUM_THREADS=1 python packages/loragen-infer/benchmarks/bench_serve.py [--clients 50] [--seconds 60]
[--num-blocks 0] [--num-basis 41]

Every request has prompts of its own, so every one is generated and written. Prints the errors but 429, p50 and p99
under load, the throughput against one client that asks one at a time, and what a warm request of one client takes
beyond `LoraGenerator.generate`, also with the writing of the adapter apart; these three in turns, so that all meet the
same machine.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from bench_generate import PROMPT, make_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the clients ask")
    parser.add_argument("--num-blocks", type=int, default=0, help="HyperConv blocks of the generator")
    parser.add_argument(
        "--num-basis", type=int, default=41, help="its patterns; one less than there are training tasks"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(
            Path(folder) / "generator.safetensors", num_blocks=options.num_blocks, num_basis=options.num_basis
        )
        words = [sys.executable, "-m", "loragen_infer.cli", "serve", "--model", str(bundle)]
        words += ["--store", f"{folder}/adapters", "--port", "0"]
        server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)  # noqa: S603  # this interpreter
        try:
            url = next(iter(server.stdout or ())).split()[0]  # when it answers
            alone, _ = load(url, 1, min(10.0, options.seconds), "alone")
            many, codes = load(url, options.clients, options.seconds, "many")
            answered, plain, written = in_turns(url, bundle, Path(folder))
            again = repeated(url)
        finally:
            server.terminate()
            server.wait()
        seconds = min(10.0, options.seconds)
        rates = len(alone) / seconds, len(many) / options.seconds
        cuts = statistics.quantiles(many, n=100)
        wrong = {code: number for code, number in codes.items() if code not in (200, 429)}
        print(f"{options.clients} clients for {options.seconds:g} s: {dict(codes)}, errors but 429: {wrong or 'none'}")
        print(f"p50 {cuts[49] * 1e3:.0f} ms, p99 {cuts[98] * 1e3:.0f} ms, {rates[1]:.1f} requests/s")
        print(f"one at a time: {rates[0]:.1f} requests/s; ratio {rates[1] / rates[0]:.2f} (bar: 3)")
        print(
            f"a request alone: {answered:.1f} ms; generate: {plain:.1f} ms, get_or_create: {written:.1f} ms; over "
            f"generate {answered - plain:.1f} ms (bar: 5), over get_or_create {answered - written:.1f} ms; one that is "
            f"there: {again:.1f} ms"
        )
        if wrong:
            sys.exit("Some requests failed.")


def load(url: str, num_clients: int, seconds: float, name: str) -> tuple[list[float], Counter[int | str]]:
    """The seconds of every answered request, and how often each status came, or what else."""
    taken: list[float] = []
    codes: Counter[int | str] = Counter()
    end = time.perf_counter() + seconds

    def ask(client: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
        number = 0
        while time.perf_counter() < end:
            start = time.perf_counter()
            status: int | str
            try:
                status = post(connection, f"{PROMPT} {name} {client} {number}")
            except (OSError, http.client.HTTPException) as error:  # no answer
                status = type(error).__name__
                connection.close()
            codes[status] += 1
            if status == 200:
                taken.append(time.perf_counter() - start)
            number += 1

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken, codes


def post(connection: http.client.HTTPConnection, prompt: str) -> int:
    connection.request("POST", "/adapters", json.dumps({"prompts": [prompt]}), {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def repeated(url: str) -> float:
    """Milliseconds of a request whose adapter is there."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    taken = []
    for _ in range(100):
        start = time.perf_counter()
        post(connection, PROMPT)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e3


def in_turns(url: str, bundle: Path, folder: Path) -> tuple[float, float, float]:
    """Milliseconds of a request, and here of `generate` and `get_or_create`, which also writes the adapter."""
    import torch
    from loragen_infer import AdapterStore, LoraGenerator

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    generator = LoraGenerator.from_pretrained(bundle)
    store = AdapterStore(folder / "in_process", generator)
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    ways: tuple[Callable[[str], object], ...] = (
        lambda prompt: post(connection, prompt),
        lambda prompt: generator.generate([prompt]),
        lambda prompt: store.get_or_create([prompt]),
    )
    taken: list[list[float]] = [[] for _ in ways]
    for turn in range(8):
        for way, of_way in zip(ways, taken, strict=True):
            for number in range(25):
                start = time.perf_counter()
                way(f"{PROMPT} {turn} {number}")
                if number >= 5:  # the caches of the processor are its own again
                    of_way.append(time.perf_counter() - start)
    answered, plain, written = (statistics.median(of_way) * 1e3 for of_way in taken)
    return answered, plain, written


if __name__ == "__main__":
    main()
