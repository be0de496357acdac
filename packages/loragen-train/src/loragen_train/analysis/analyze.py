"""What is in a zoo: modules and sizes, norms, spread, similarity, outliers, and the files that cannot be read.

Every checkpoint is read on its own, three times: to describe it, for the statistics of the positions, and for the inner
products of the weight changes; the memory that this takes does not grow with their number. A checkpoint's task is the
folder that it lies in.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lora_tokenizer import (
    AdapterReport,
    LoraTokenizerError,
    TokenLayout,
    TokenStats,
    find_adapters,
    inspect_adapter,
    read_adapter,
)
from loragen_infer.progress import ProgressBar

from loragen_train.analysis.outliers import find_outliers
from loragen_train.analysis.similarity import Matrix, cosines, delta_gram, principal_axes, task_gram
from loragen_train.errors import LoragenTrainError
from loragen_train.words import counted

__all__ = ["CheckpointSummary", "TaskSummary", "ZooAnalysis", "analyze_zoo"]


@dataclass(frozen=True, kw_only=True)
class CheckpointSummary:
    """A checkpoint that could be read."""

    path: str
    task: str
    layout: str
    """Fingerprint of its layout."""
    num_parameters: int
    norm_delta: float
    """Norm of its whole weight change ΔW."""
    projection: list[float]
    """Its place on the two main axes of the weight changes."""
    outlier: list[str]
    """Why it stands out, if it does; see :mod:`loragen_train.analysis.outliers`."""


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """A task."""

    name: str
    num_checkpoints: int
    mean_norm_delta: float
    """Mean norm of its checkpoints' weight changes."""
    cosine_within: float | None
    """Mean cosine of the pairs of its checkpoints; None where it has one."""


@dataclass(frozen=True, kw_only=True)
class ZooAnalysis:
    """A zoo in numbers.

    Legend: M checkpoints that could be read, T tasks.
    """

    folder: str
    """Where it is."""
    token_dim: int
    """Values per token."""
    max_tokens: int | str
    """Tokens that there may be."""
    layouts: list[dict[str, Any]]
    """Every layout that occurs: how many checkpoints have it, its size, and whether it fits."""
    modules: list[dict[str, Any]]
    """Kinds of module of the commonest layout: number, r, shapes, mean norms of A, B and ΔW over the checkpoints."""
    spread: dict[str, Any]
    """How much the token positions of the commonest layout vary over its checkpoints."""
    tasks: list[TaskSummary]
    """The tasks, of length T."""
    task_cosine: list[list[float]]
    """Cosines of the tasks' mean weight changes, ``[T, T]``."""
    between_tasks: float | None
    """Share of the variance of ΔW that lies between the tasks' means; None where nothing varies."""
    explained: list[float]
    """Share of the variance on each of the two main axes."""
    checkpoints: list[CheckpointSummary]
    """The checkpoints, of length M."""
    cosine: list[list[float]]
    """Cosines of the weight changes of all checkpoints, ``[M, M]``."""
    broken: dict[str, str]
    """Path to the reason why it cannot be used."""

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON values; what is no number (NaN) becomes null."""
        return {**_without_nan(asdict(self)), "num_checkpoints": len(self.checkpoints)}


def analyze_zoo(folder: Path, *, max_tokens: int | str = 512, token_dim: int = 384, **read_options: Any) -> ZooAnalysis:
    """Analyze every checkpoint below ``folder``; one that cannot be read, or holds NaN or Inf, is named in ``broken``.

    Args:
        folder: The zoo; its sub-folders are the tasks.
        max_tokens: Tokens that there may be, to say whether they suffice; ``"auto"`` always does.
        token_dim: Values per token.
        read_options: What :func:`lora_tokenizer.read_adapter` is to be told, such as ``lora_alpha``.

    Raises:
        LoraTokenizerError: There are no checkpoints.
        LoragenTrainError: None can be read.
    """
    reports, broken = _describe(find_adapters(folder), token_dim, read_options)
    if not reports:
        first = next(iter(broken.values()))
        raise LoragenTrainError(
            f"None of the {counted(len(broken), 'checkpoint')} in {folder} can be used; the first: {first}"
        )
    commonest = Counter(report.fingerprint for report in reports).most_common(1)[0][0]
    alike = [report for report in reports if report.fingerprint == commonest]
    with ProgressBar("comparing", total=len(reports), unit="checkpoint") as bar:
        readable = [Path(report.path) for report in reports]
        gram = delta_gram(readable, lambda path: read_adapter(path, **read_options), on_done=bar.advance)
    tasks = [_task_of(path, folder) for path in readable]
    names = list(dict.fromkeys(tasks))
    means, cosine, norms = task_gram(gram, tasks, names), cosines(gram), np.sqrt(np.diag(gram))
    points, explained = principal_axes(gram)
    outliers = find_outliers(gram, tasks)
    return ZooAnalysis(
        folder=str(folder),
        token_dim=token_dim,
        max_tokens=max_tokens,
        layouts=_layouts(reports, max_tokens),
        modules=_kinds_of_modules(alike),
        spread=_spread(alike, token_dim, read_options),
        tasks=[_summary(name, np.array(tasks) == name, norms, cosine) for name in names],
        task_cosine=cosines(means).tolist(),
        between_tasks=_between_tasks(gram, means, [tasks.count(name) for name in names]),
        explained=explained,
        checkpoints=[
            CheckpointSummary(
                path=report.path,
                task=tasks[index],
                layout=report.fingerprint,
                num_parameters=report.num_parameters,
                norm_delta=float(norms[index]),
                projection=points[index].tolist(),
                outlier=outliers.get(index, []),
            )
            for index, report in enumerate(reports)
        ],
        cosine=cosine.tolist(),
        broken=broken,
    )


def _describe(paths: list[Path], token_dim: int, options: dict[str, Any]) -> tuple[list[AdapterReport], dict[str, str]]:
    reports: list[AdapterReport] = []
    broken: dict[str, str] = {}
    with ProgressBar("reading", total=len(paths), unit="checkpoint") as bar:
        for path in paths:
            try:
                report = inspect_adapter(path, token_dim=token_dim, **options)
                if report.num_nonfinite:
                    broken[str(path)] = f"{path} holds {counted(report.num_nonfinite, 'value')} of NaN or Inf"
                else:
                    reports.append(report)
            except LoraTokenizerError as error:
                broken[str(path)] = str(error)
            bar.advance()
    return reports, broken


def _task_of(path: Path, folder: Path) -> str:
    if path == folder:
        return folder.absolute().parent.name
    return folder.absolute().name if path.parent == folder else path.parent.relative_to(folder).as_posix()


def _summary(name: str, members: Matrix, norms: Matrix, cosine: Matrix) -> TaskSummary:
    pairs = cosine[np.ix_(members, members)][np.triu_indices(int(members.sum()), k=1)]
    return TaskSummary(
        name=name,
        num_checkpoints=int(members.sum()),
        mean_norm_delta=float(norms[members].mean()),
        cosine_within=float(pairs.mean()) if pairs.size else None,
    )


def _layouts(reports: list[AdapterReport], max_tokens: int | str) -> list[dict[str, Any]]:
    described = []
    for fingerprint, count in Counter(report.fingerprint for report in reports).most_common():
        report = next(report for report in reports if report.fingerprint == fingerprint)
        described.append(
            {
                "fingerprint": fingerprint,
                "num_checkpoints": count,
                "example": report.path,
                "num_modules": len(report.modules),
                "ranks": sorted({module.r for module in report.modules}),
                "dtypes": list(report.dtypes),
                "num_parameters": report.num_parameters,
                "num_tokens": report.num_tokens,
                "grid": list(report.grid),
                "padding": report.padding,
                "fits": isinstance(max_tokens, str) or report.num_tokens <= max_tokens,
            }
        )
    return described


def _kinds_of_modules(reports: list[AdapterReport]) -> list[dict[str, Any]]:
    """The modules of equal last name, r and shapes, with their norms averaged over modules and checkpoints."""
    norms: dict[tuple[Any, ...], list[tuple[float, float, float]]] = defaultdict(list)
    for report in reports:
        for module in report.modules:
            kind = (module.module.rpartition(".")[2], module.r, module.scaling, module.shape_a, module.shape_b)
            norms[kind].append((module.norm_a, module.norm_b, module.norm_delta))
    return [
        {
            "name": name,
            "number": len(values) // len(reports),
            "r": r,
            "scaling": scaling,
            "shape_a": list(shape_a),
            "shape_b": list(shape_b),
            **dict(zip(("norm_a", "norm_b", "norm_delta"), np.mean(values, axis=0).tolist(), strict=True)),
        }
        for (name, r, scaling, shape_a, shape_b), values in norms.items()
    ]


def _spread(reports: list[AdapterReport], token_dim: int, options: dict[str, Any]) -> dict[str, Any]:
    """Standard deviation of every real position over the checkpoints, and how it is distributed."""
    first = read_adapter(reports[0].path, **options).to(torch.float32)
    layout = TokenLayout.from_adapter(first, token_dim=token_dim, max_tokens="auto")

    def tokens() -> Iterator[torch.Tensor]:
        for report in reports:
            yield layout.encode(read_adapter(report.path, **options).to(torch.float32))

    stats = TokenStats.from_tokens(tokens())
    std = stats.std[layout.mask()].double()
    quantiles = np.quantile(std.numpy(), [0.0, 0.05, 0.5, 0.95, 1.0]).tolist()
    return {
        "num_checkpoints": len(reports),
        "num_positions": std.numel(),
        "constant": float((std <= stats.floor).double().mean()),
        "std": dict(zip(("min", "p05", "median", "p95", "max"), quantiles, strict=True)),
        "rms_of_mean": float(stats.mean[layout.mask()].double().square().mean().sqrt()),
    }


def _between_tasks(gram: Matrix, means: Matrix, sizes: list[int]) -> float | None:
    """Share of the total scatter of ΔW that remains when every checkpoint is replaced by its task's mean."""
    centre = float(gram.mean())
    total = float(np.diag(gram).mean()) - centre
    between = float(np.average(np.diag(means), weights=sizes)) - centre
    # Below round-off nothing varies.
    return min(max(between / total, 0.0), 1.0) if total > 1e-12 * centre else None


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else value
