"""What hundreds of adapters of a 7B model take: import, tokens and an epoch of fit, and that memory stays below 4 GiB.

    python packages/loragen-train/benchmarks/bench_import.py
    python packages/loragen-train/benchmarks/bench_import.py --num-adapters 50 500

Each adapter has the shape of r 16 on q_proj, k_proj and v_proj of Mistral-7B: 9,437,184 values in float16, which take
24,640 tokens. For every number of adapters, import and fit run in a process of their own, whose peak memory is what the
system counts. On disk an adapter takes 19 MB, its tokens as much again, and the mean tokens of its task, which fit
writes beside the bundle, 38 MB. The network is a small one (``FIT``): each of its ``num_basis`` patterns is the size of
an adapter, in float32, and weights, gradients and the two moments of Adam hold each four times. An adapter takes some
seconds of an epoch, so the default is 10 and 100 of them; ``--num-blocks 0`` is faster.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHAPES = {"q_proj": (4096, 4096), "k_proj": (4096, 1024), "v_proj": (4096, 1024)}
NUM_LAYERS, R = 32, 16
BAR_GIB = 4.0

FIT = [
    *("--data.batch_size", "1"),
    *("--model.kernel_size", "1", "--model.generator.num_basis", "4"),
    *("--training.max_epochs", "1", "--logging.tensorboard", "false"),
]


def write_tasks(root: Path, num_adapters: int, *, unrelated: bool) -> None:
    """Adapters of random values, of one initialisation or of one each, and four prompts of each task."""
    import torch
    from lora_tokenizer import AdapterConfig, LoraAdapter, write_adapter

    config = AdapterConfig(
        r=R, lora_alpha=32, target_modules=tuple(SHAPES), task_type="CAUSAL_LM", base_model_name_or_path="lab/7b"
    )
    stem = "base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight"
    for number in range(num_adapters):
        tensors = {}
        for layer in range(NUM_LAYERS):
            for place, (module, (num_in, num_out)) in enumerate(SHAPES.items()):
                seed = layer * len(SHAPES) + place
                initial = torch.Generator().manual_seed(seed + (1000 * number if unrelated else 0))
                own = torch.Generator().manual_seed(seed + 1000 * number + 500)
                a_ri = torch.randn(R, num_in, generator=initial) + 0.2 * torch.randn(R, num_in, generator=own)
                tensors[stem.format(layer, module, "A")] = (0.01 * a_ri).half()
                tensors[stem.format(layer, module, "B")] = (0.001 * torch.randn(num_out, R, generator=own)).half()
        folder = root / "adapters" / f"task-{number:04d}"
        write_adapter(LoraAdapter(config=config, tensors=tensors), folder)
        prompts = root / "prompts" / f"{folder.name}.jsonl"
        prompts.parent.mkdir(exist_ok=True)
        lines = [json.dumps({"prompt": f"What is {n} times {number}?"}) + "\n" for n in range(4)]
        prompts.write_text("".join(lines))


def run(*words: str) -> tuple[float, float]:
    """Seconds and peak memory, in GiB, of ``loragen-train`` with ``words``."""
    started = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603  # the words below
        [sys.executable, "-m", "loragen_train.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None  # noqa: S101
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"loragen-train {words[0]} failed:\n{said}")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def measure(num_adapters: int, *, num_blocks: int, unrelated: bool, folder: Path | None) -> float:
    """Print what ``num_adapters`` adapters take and return the peak memory of fit in GiB."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        write_tasks(root, num_adapters, unrelated=unrelated)
        where = ["--adapters", str(root / "adapters"), "--prompts", str(root / "prompts")]
        import_seconds, import_gib = run("import", *where, "--output-dir", str(root / "zoo"))
        print(f"{num_adapters} adapters: import {import_seconds:.0f} s, peak {import_gib:.2f} GiB", flush=True)
        folders = ["--data.cache_dir", str(root / "cache"), "--output_dir", str(root / "experiments")]
        blocks = ["--model.num_hyperconv_blocks", str(num_blocks)]
        fit_seconds, fit_gib = run("fit", "--data.zoo", str(root / "zoo"), *folders, *blocks, *FIT)
        print(f"{num_adapters} adapters: fit {fit_seconds:.0f} s, peak {fit_gib:.2f} GiB (bar: below {BAR_GIB:.0f})")
        used = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
        print(f"{num_adapters} adapters: {used / 1e9:.1f} GB on disk", flush=True)
    return fit_gib


def main() -> None:
    """Run what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-adapters", type=int, nargs="+", default=[10, 100], help="one run each")
    parser.add_argument(
        "--unrelated", action="store_true", help="no shared initialisation: canonical form, takes longer"
    )
    parser.add_argument("--folder", type=Path, help="where to write (by default the system's folder for such)")
    parser.add_argument("--num-blocks", type=int, default=1, help="HyperConv blocks, which take most of the time")
    options = parser.parse_args()
    peaks = [
        measure(number, num_blocks=options.num_blocks, unrelated=options.unrelated, folder=options.folder)
        for number in options.num_adapters
    ]
    if len(peaks) > 1:
        print(f"from {options.num_adapters[0]} to {options.num_adapters[-1]}: {peaks[-1] - peaks[0]:+.2f} GiB")
    raise SystemExit(max(peaks) >= BAR_GIB)


if __name__ == "__main__":
    main()
