"""What is in a zoo: modules and sizes, norms, spread, similarity, outliers, and the files that cannot be read.

Checkpoints are read a few at a time, so the memory that this takes does not grow with their number.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from lora_tokenizer import (
    AdapterReport,
    LoraTokenizerError,
    ModuleReport,
    TokenLayout,
    TokenStats,
    read_adapter,
)
from lora_tokenizer.inspecting import report_on
from loragen_infer.progress import ProgressBar
from loragen_infer.words import counted

from loragen_train.analysis.outliers import find_outliers
from loragen_train.analysis.similarity import Matrix, cosines, delta_gram, principal_axes, task_gram
from loragen_train.errors import LoragenTrainError
from loragen_train.zoo.checkpoints import find_checkpoints
from loragen_train.zoo.grouping import layout_of

__all__ = ["analyze_zoo", "size_of"]


def analyze_zoo(
    folder: Path, *, max_tokens: int | str = 512, token_dim: int = 384, **read_options: Any
) -> dict[str, Any]:
    """Analyze every checkpoint of ``folder``; one that cannot be read, or holds NaN or Inf, is named in ``broken``.

    Args:
        folder: The zoo: a folder with a ``zoo.json``, or one whose sub-folders are the tasks.
        max_tokens: Tokens that there may be, to say whether they suffice; ``"auto"`` always does.
        token_dim: Values per token.
        read_options: What :func:`lora_tokenizer.read_adapter` is to be told, such as ``lora_alpha``.

    Returns:
        Plain JSON values. Of the M checkpoints that could be read, ``checkpoints`` with their norms of ΔW, their places
        on the two main axes (``explained`` is the share of the variance on each) and why they are outliers, and
        ``cosine`` ``[M, M]``; of the T tasks, ``tasks``, ``task_cosine`` ``[T, T]`` of their means, and
        ``between_tasks``, the share of the variance between these; ``layouts``, the commonest first, and of that one
        ``modules`` by kind, with their mean norms, and ``spread``, how much the token positions vary.

    Raises:
        LoraTokenizerError: There are no checkpoints.
        LoragenTrainError: None can be read.
        LoragenInferError: ``zoo.json`` is damaged.
    """
    checkpoints = find_checkpoints(folder)
    reports, broken = _describe(list(checkpoints), token_dim, read_options)
    if not reports:
        all_of_them, first = counted(len(broken), "checkpoint"), next(iter(broken.values()))
        raise LoragenTrainError(f"None of the {all_of_them} in {folder} can be used; the first: {first}")
    layouts = _layouts(reports, max_tokens)
    alike = [report for report in reports if report.fingerprint == layouts[0]["fingerprint"]]
    readable = [Path(report.path) for report in reports]
    with ProgressBar("comparing", total=len(readable), unit="checkpoint") as bar:
        gram = delta_gram(readable, lambda path: read_adapter(path, **read_options), on_done=bar.advance)
    tasks = [checkpoints[path] for path in readable]
    names = list(dict.fromkeys(tasks))
    means, cosine, norms = task_gram(gram, tasks, names), cosines(gram), np.sqrt(np.diag(gram))
    points, explained = principal_axes(gram)
    outliers = find_outliers(gram, tasks)
    return {
        "folder": str(folder),
        "token_dim": token_dim,
        "max_tokens": max_tokens,
        "num_checkpoints": len(reports),
        "layouts": layouts,
        "modules": _kinds_of_modules(alike),
        "spread": _spread(alike, token_dim, read_options),
        "tasks": [_summary(name, np.array(tasks) == name, norms, cosine) for name in names],
        "task_cosine": cosines(means).tolist(),
        "between_tasks": _between_tasks(gram, means, [tasks.count(name) for name in names]),
        "explained": explained,
        "checkpoints": [
            {
                "path": report.path,
                "task": tasks[index],
                "layout": report.fingerprint,
                "num_parameters": report.num_parameters,
                "norm_delta": float(norms[index]),
                "projection": points[index].tolist(),
                "outlier": outliers.get(index, []),
            }
            for index, report in enumerate(reports)
        ],
        "cosine": cosine.tolist(),
        "broken": broken,
    }


def _describe(paths: list[Path], token_dim: int, options: dict[str, Any]) -> tuple[list[AdapterReport], dict[str, str]]:
    reports: list[AdapterReport] = []
    broken: dict[str, str] = {}
    with ProgressBar("reading", total=len(paths), unit="checkpoint") as bar:
        for path in paths:
            try:
                adapter = read_adapter(path, **options)
                report = report_on(adapter, str(path), token_dim=token_dim)
                reports.append(replace(report, fingerprint=layout_of(adapter, token_dim=token_dim).fingerprint))
            except LoraTokenizerError as error:
                broken[str(path)] = str(error)
            bar.advance()
    return reports, broken


def _summary(name: str, members: Matrix, norms: Matrix, cosine: Matrix) -> dict[str, Any]:
    pairs = cosine[np.ix_(members, members)][np.triu_indices(int(members.sum()), k=1)]
    return {
        "name": name,
        "num_checkpoints": int(members.sum()),
        "mean_norm_delta": float(norms[members].mean()),
        "cosine_within": float(pairs.mean()) if pairs.size else None,
    }


def _layouts(reports: list[AdapterReport], max_tokens: int | str) -> list[dict[str, Any]]:
    examples = {report.fingerprint: report for report in reversed(reports)}
    counts = Counter(report.fingerprint for report in reports)
    return [
        {
            "fingerprint": fingerprint,
            "num_checkpoints": count,
            "example": examples[fingerprint].path,
            "dtypes": sorted({dtype for one in reports if one.fingerprint == fingerprint for dtype in one.dtypes}),
            **size_of(examples[fingerprint], max_tokens),
        }
        for fingerprint, count in counts.most_common()
    ]


def size_of(report: AdapterReport, max_tokens: int | str) -> dict[str, Any]:
    """Return the size of an adapter and of its tokens, and whether these are at most ``max_tokens``."""
    return {
        "num_modules": len(report.modules),
        "ranks": sorted({module.r for module in report.modules}),
        "num_parameters": report.num_parameters,
        "num_tokens": report.num_tokens,
        "grid": list(report.grid),
        "padding": report.padding,
        "fits": isinstance(max_tokens, str) or report.num_tokens <= max_tokens,
    }


def _kinds_of_modules(reports: list[AdapterReport]) -> list[dict[str, Any]]:
    """The modules of equal last name, r and shapes, with their norms averaged over modules and checkpoints."""
    kinds: dict[tuple[Any, ...], list[ModuleReport]] = defaultdict(list)
    for module in (module for report in reports for module in report.modules):
        kinds[module.module.rpartition(".")[2], module.r, module.scaling, module.shape_a, module.shape_b].append(module)
    return [
        {
            "name": name,
            "number": len(modules) // len(reports),
            "r": r,
            "scaling": scaling,
            "shape_a": list(shape_a),
            "shape_b": list(shape_b),
            **{key: fmean(getattr(module, key) for module in modules) for key in ("norm_a", "norm_b", "norm_delta")},
        }
        for (name, r, scaling, shape_a, shape_b), modules in kinds.items()
    ]


def _spread(reports: list[AdapterReport], token_dim: int, options: dict[str, Any]) -> dict[str, Any]:
    """Standard deviation of every real position over the checkpoints, and how it is distributed."""
    first = read_adapter(reports[0].path, **options).to(torch.float32)
    layout = TokenLayout.from_adapter(first, token_dim=token_dim, max_tokens="auto")

    def tokens() -> Iterator[torch.Tensor]:
        for report in reports:
            yield layout.encode(read_adapter(report.path, **options).to(torch.float32))

    stats = TokenStats.from_tokens(tokens())
    mean, std = stats.mean[layout.mask()].double().numpy(), stats.std[layout.mask()].double().numpy()
    shares = {"min": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {
        "num_checkpoints": len(reports),
        "num_positions": std.size,
        "constant": float((std <= stats.floor).mean()),
        "std": {name: float(np.quantile(std, share)) for name, share in shares.items()},
        "rms_of_mean": float(np.sqrt(np.square(mean).mean())),
    }


def _between_tasks(gram: Matrix, means: Matrix, sizes: list[int]) -> float | None:
    """Share of the total scatter of ΔW that remains when every checkpoint is replaced by its task's mean."""
    centre = float(gram.mean())
    total = float(np.diag(gram).mean()) - centre
    between = float(np.average(np.diag(means), weights=sizes)) - centre
    # Below round-off nothing varies.
    return min(max(between / total, 0.0), 1.0) if total > 1e-12 * centre else None
