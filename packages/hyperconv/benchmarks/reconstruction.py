"""How well each option of the generator learns a zoo of trained LoRA adapters in a fixed number of steps.

A zoo is a folder `<zoo>/adapters/<task>/checkpoint-*/adapter_model.safetensors` with `<zoo>/train/<task>.jsonl`
(lines with a "prompt"), which needs safetensors and sentence-transformers, or the .pt file that --save wrote from one.

    python packages/hyperconv/benchmarks/reconstruction.py ZOO --encoder all-MiniLM-L6-v2 --save zoo.pt
    python packages/hyperconv/benchmarks/reconstruction.py zoo.pt --steps 60 --seeds 3

Per option it prints, on prompts that training did not see: the cosine of ΔW = B·A with that of the task's mean adapter
(mean and lowest over tasks), the reconstruction error of the z-scored tokens (1 is the mean adapter of the zoo), the
root-mean-square output of the untrained network, and processor seconds per step. Each is the mean over the seeds ± the
standard deviation between them; a seed draws the initial weights and the order of the training. The expander "linear"
starts as ridge regression on those tasks, with as many patterns as they need.

Legend: T tasks, S checkpoints per task, P prompts, D width of an embedding, N tokens, W values per token.
"""

import argparse
import dataclasses
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from hyperconv import GeneratorConfig, HyperConvGenerator, fit_ridge, num_basis_for
from torch import Tensor
from torch.nn.functional import cosine_similarity

BASIS_OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_basis": 8},
    {"num_basis": 32},
    {"basis_gain": 1.0},
    {"basis_gain": 4.0},
    {"basis_gain": 16.0},
    {"expander_skip": False},
    {"num_hyperconv_blocks": 0},
    {"num_hyperconv_blocks": 1},
    {"block": "dual"},
    {"kernel_size": 1},
    {"kernel_size_w": 3},
    {"position_embedding": False},
    {"film": False},
    {"pooling": "attention"},
    {"centering": "none"},
    {"output_scale": 0.1},
    {"output_scale": 1.0},
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_hyperconv_blocks": 0},
    {"block": "dual"},
    *({"expander": "basis", **options} for options in BASIS_OPTIONS),
    {"expander": "broadcast"},
]
SUBSETS, SUBSET_SIZE = 8, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zoo:
    """Tokens of every checkpoint, prompt embeddings of every task, and where the tensors lie in the tokens."""

    tokens: Tensor
    """[T, S, N, W]."""
    conditions: Tensor
    """[T, P, D]."""
    grid: tuple[int, int]
    pieces: list[tuple[str, list[int]]]
    """Name and shape of every LoRA tensor, in the order in which they fill the tokens."""


def read_folder(folder: Path, encoder: str, width: int, num_prompts: int) -> Zoo:
    """Read a zoo: tensors sorted by layer, each layer flattened and cut into tokens of `width` values."""
    try:
        from safetensors.torch import load_file
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"Reading a zoo folder needs {error.name}: pip install safetensors sentence-transformers."
        ) from error
    tokens, prompts, pieces, num_layers = [], [], [], 0
    for task in sorted(path for path in (folder / "adapters").iterdir() if path.is_dir()):
        files = sorted(task.glob("checkpoint-*/adapter_model.safetensors"))
        lines = (folder / "train" / f"{task.name}.jsonl").read_text().splitlines()[:num_prompts]
        if not files:
            continue
        adapters = [load_file(file) for file in files]
        names = sorted(adapters[0], key=lambda name: (layer_of(name), name))
        num_layers = layer_of(names[-1]) + 1
        pieces = [(name, list(adapters[0][name].shape)) for name in names]
        flat = [torch.cat([adapter[name].float().flatten() for name in names]) for adapter in adapters]
        tokens.append(torch.stack(flat).view(len(files), -1, width))
        prompts.append([json.loads(line)["prompt"] for line in lines])
    embed = SentenceTransformer(encoder, device="cpu").encode
    conditions_TPD = torch.stack([torch.as_tensor(embed(p, normalize_embeddings=True)) for p in prompts])
    tokens_TSNW = torch.stack(tokens)
    grid = (num_layers, tokens_TSNW.shape[2] // num_layers)
    return Zoo(tokens=tokens_TSNW, conditions=conditions_TPD, grid=grid, pieces=pieces)


def layer_of(name: str) -> int:
    """The number of the transformer layer in the name of a LoRA tensor."""
    found = re.search(r"\.(\d+)\.", name)
    if found is None:
        raise SystemExit(f"{name} names no layer, expected a number between dots as in model.layers.3.self_attn.")
    return int(found.group(1))


def delta_weights(zoo: Zoo, flat: Tensor) -> Tensor:
    """All ΔW = B·A of one adapter, flattened into one vector."""
    tensors, at = {}, 0
    for name, shape in zoo.pieces:
        size = torch.Size(shape).numel()
        tensors[name] = flat.flatten()[at : at + size].view(shape).double()
        at += size
    return torch.cat(
        [(tensors[a.replace("lora_A", "lora_B")] @ tensors[a]).flatten() for a in tensors if "lora_A" in a]
    )


def measure(zoo: Zoo, options: dict[str, Any], args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Train one generator and score it on the held-out half of every task's prompts."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    num_tasks, num_checkpoints = zoo.tokens.shape[:2]
    half = zoo.conditions.shape[1] // 2
    mean_NW = zoo.tokens.mean((0, 1))
    std_NW = zoo.tokens.std((0, 1)).clamp(min=1e-8)
    z_TSNW = (zoo.tokens - mean_NW) / std_NW
    sizes = {"grid": zoo.grid, "condition_dim": zoo.conditions.shape[-1], "output_dim": z_TSNW.shape[-1]}
    if options.get("expander", "linear") == "linear":
        sizes["num_basis"] = num_basis_for(num_tasks, z_TSNW[0, 0].numel())
    config = GeneratorConfig(**{**sizes, **options})
    generator = HyperConvGenerator(config)
    generator.center_on(zoo.conditions[:, :half].flatten(0, 1))
    if config.expander == "linear":
        subsets = torch.randint(half, (num_tasks, SUBSETS, SUBSET_SIZE), generator=draw)
        rows_TSD = zoo.conditions[torch.arange(num_tasks)[:, None, None], subsets].mean(2)
        means_TNW = z_TSNW.mean(1)
        generator.start_from(fit_ridge(rows_TSD, means_TNW.flatten(1) @ means_TNW.flatten(1).T), means_TNW)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps, eta_min=args.lr / 20)
    unseen_TPD = zoo.conditions[:, half : half + 8]
    with torch.no_grad():
        start = generator.eval()(unseen_TPD).square().mean().sqrt().item()
    generator.train()
    began = time.process_time()
    for _ in range(args.steps):
        task = torch.randint(num_tasks, (args.batch,), generator=draw)
        checkpoint = torch.randint(num_checkpoints, (args.batch,), generator=draw)
        prompts = torch.randint(half, (args.batch, 8), generator=draw)
        error = generator(zoo.conditions[task[:, None], prompts]) - z_TSNW[task, checkpoint]
        optimizer.zero_grad(set_to_none=True)
        (error.square().mean() + 0.1 * error.abs().mean()).backward()
        optimizer.step()
        schedule.step()
    seconds = (time.process_time() - began) / args.steps
    with torch.no_grad():
        made_TNW = generator.eval()(unseen_TPD)
    goal_TNW = z_TSNW.mean(1)
    made, goal = ([delta_weights(zoo, z * std_NW + mean_NW) for z in zs] for zs in (made_TNW, goal_TNW))
    cosine_T = cosine_similarity(torch.stack(made), torch.stack(goal))
    return {
        "cosine": cosine_T.mean().item(),
        "lowest": cosine_T.min().item(),
        "error": ((made_TNW - goal_TNW).square().mean() / goal_TNW.square().mean()).item(),
        "start": start,
        "s/step": seconds,
    }


def main() -> None:
    """Read the arguments, measure every option, print one Markdown row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, help="zoo folder, or a file written by --save")
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2", help="SentenceTransformer folder or name")
    parser.add_argument("--save", type=Path, help="write tokens and embeddings to this .pt file and stop")
    parser.add_argument("--width", type=int, default=384, help="values per token")
    parser.add_argument("--prompts", type=int, default=64, help="prompts per task; the first half trains")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--options", type=json.loads, default=OPTIONS, help='JSON list such as [{}, {"film": false}]')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.zoo.is_dir():
        zoo = read_folder(args.zoo, args.encoder, args.width, args.prompts)
    else:
        zoo = Zoo(**torch.load(args.zoo, weights_only=True))
    if args.save:
        torch.save({field.name: getattr(zoo, field.name) for field in dataclasses.fields(zoo)}, args.save)
        return
    print(f"{list(zoo.tokens.shape)} tokens [T, S, N, W], {args.steps} steps, batch {args.batch}, lr {args.lr}")
    print("| option | cosine of ΔW, mean | lowest task | error | start | s/step |\n|---|---|---|---|---|---|")
    for options in args.options:
        runs = [measure(zoo, options, args, seed) for seed in range(args.seeds)]
        label = ", ".join(f"{key}={value}" for key, value in options.items()) or "defaults"
        cells = (mean_and_spread([run[key] for run in runs]) for key in runs[0])
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def mean_and_spread(values: list[float]) -> str:
    """The mean, and ± the standard deviation where there are several."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


if __name__ == "__main__":
    main()
