"""Speed and memory of the decoder in ratios: against the plain twin and against the machine's own matrix product.

    python packages/hyperconv/benchmarks/bench_decoder.py [--device cuda] [--rounds 3]

One process measures all of it, the things compared in turn, and prints medians. "of gemm" is the rate of the
convolutions, counted by FlopCounterMode (padding included), over the rate of a square matrix product in the same dtype,
threads and round. Peak memory on CPU is what the allocator reports between the start and the end of the step.
"""

import argparse
import copy
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# The profiler of torch writes lines of its own to stderr; it reads the level when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch
from hyperconv import GeneratorConfig, HyperConvDecoder, HyperConvGenerator
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import reference

Forward = Callable[[HyperConvDecoder, Tensor], Tensor]
SEED_SHAPES = [(16, 32, 384)] * 4
DUAL_SHAPES = [(16, 32, 256), (16, 32, 256), (24, 32, 192)]


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def peak_mebibytes(function: Callable[[], object], device: torch.device) -> float:
    """Most memory that tensors made by the call held at one time."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def train_step(forward: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor]) -> None:
    """Forward and backward to every parameter."""
    torch.autograd.grad(forward(x).square().mean(), parameters)


def compare(name: str, decoder: HyperConvDecoder, batch: int, rounds: int) -> None:
    """Print one row per dtype and direction for this decoder and its plain twin."""
    device = next(decoder.parameters()).device
    size = 8192 if device.type == "cuda" else 1024
    twin = copy.deepcopy(decoder)
    for parameter in twin.parameters():
        parameter.data = parameter.data.contiguous()
    medians: dict[tuple[str, torch.dtype], float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=device, dtype=dtype)
        x = torch.randn(batch, *decoder.shapes[0], device=device)
        for mode in ("forward", "fwd+bwd"):

            def call(
                model: HyperConvDecoder, forward: Forward, mode: str = mode, x: Tensor = x, dtype: torch.dtype = dtype
            ) -> None:
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                    if mode == "fwd+bwd":
                        return train_step(lambda x: forward(model, x), x, list(model.parameters()))
                    with torch.no_grad():
                        forward(model, x)

            fast = functools.partial(call, decoder, lambda model, x: model(x))
            plain = functools.partial(call, twin, reference.decoder)
            with FlopCounterMode(display=False) as counter:
                fast()
            times = []
            for _ in range(rounds + 1):
                gemm = seconds(functools.partial(torch.matmul, a, a), device)
                times.append((gemm, seconds(fast, device), seconds(plain, device)))
            times = times[1:]
            rate = [counter.get_total_flops() / ours / (2 * size**3 / gemm) for gemm, ours, _ in times]
            slower = [theirs / ours for _, ours, theirs in times]
            fast_mib, plain_mib = peak_mebibytes(fast, device), peak_mebibytes(plain, device)
            medians[mode, dtype] = statistics.median(ours for _, ours, _ in times)
            print(
                f"| {name} | {str(dtype)[6:]} | {mode} | {medians[mode, dtype] * 1e3:.1f} | "
                f"{statistics.median(rate):.2f} | {statistics.median(slower):.2f} | {plain_mib / fast_mib:.2f} |",
                flush=True,
            )
    gains = (
        f"{mode} {medians[mode, torch.float32] / medians[mode, torch.bfloat16]:.2f}" for mode in ("forward", "fwd+bwd")
    )
    print(f"| {name} | bf16 over fp32 | {', '.join(gains)} | | | | |", flush=True)


def growth(rounds: int, device: torch.device) -> None:
    """Print how the time of the default decoder grows when one of B, L, H doubles; 2 is linear."""
    small = {"B": 2, "L": 16, "H": 16}
    for axis in small:
        runs = []
        for sizes in (small, {**small, axis: 2 * small[axis]}):
            decoder = HyperConvDecoder([(sizes["L"], sizes["H"], 384)] * 4, 3, kernel_size_w=1).to(device)
            x = torch.randn(sizes["B"], *decoder.shapes[0], device=device)
            runs.append((decoder, x))
        ratios = []
        with torch.no_grad():
            for _ in range(3 * rounds):
                one, two = (seconds(functools.partial(decoder, x), device) for decoder, x in runs)
                ratios.append(two / one)
        print(f"- {axis} doubled: {statistics.median(ratios):.2f} times as long")


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {device}, {args.threads} threads, medians of {args.rounds} rounds\n")
    print(
        "| decoder | dtype | step | ms | of gemm | plain twin, time | plain twin, memory |\n"
        "|---|---|---|---|---|---|---|"
    )
    compare("seed default", HyperConvDecoder(SEED_SHAPES, 3, kernel_size_w=1).to(device), 4, args.rounds)
    compare("dual, k=3", HyperConvDecoder(DUAL_SHAPES, 3, "dual").to(device), 4, args.rounds)
    compare("dual, k=9", HyperConvDecoder(DUAL_SHAPES, 9, "dual").to(device), 2, args.rounds)
    print()
    growth(args.rounds, device)
    config = GeneratorConfig()
    generator = HyperConvGenerator(config).to(device)
    condition = torch.randn(4, 8, config.condition_dim, device=device)
    parameters = list(generator.parameters())
    forward = statistics.median(seconds(lambda: generator(condition), device) for _ in range(args.rounds))
    both = statistics.median(
        seconds(lambda: train_step(generator, condition, parameters), device) for _ in range(args.rounds)
    )
    print(f"- generator, seed default, batch 4: forward {forward * 1e3:.0f} ms, forward+backward {both * 1e3:.0f} ms")
    large = HyperConvGenerator(GeneratorConfig(grid=(24, 483)), device="meta")
    print(
        f"- generator, grid (24, 483), {large.config.max_seq_len * large.config.output_dim / 1e6:.2f} M values: "
        f"{large.num_parameters() / 1e6:.1f} M parameters, {large.flops() / 1e12:.3f} TFLOP"
    )


if __name__ == "__main__":
    main()
