"""What is in a zoo: modules and sizes, norms, spread, similarity, outliers, and the files that cannot be read.

Every checkpoint is read on its own, three times: to describe it, for the statistics of the positions, and for the inner
products of the weight changes; the memory that this takes does not grow with their number. A checkpoint's task is the
folder that it lies in.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lora_tokenizer import (
    AdapterReport,
    LoraAdapter,
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

__all__ = ["ZooAnalysis", "analyze_zoo"]


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
    reports: list[AdapterReport]
    """The checkpoints."""
    tasks: list[str]
    """The task of each checkpoint, of length M."""
    layouts: list[dict[str, Any]]
    """Every layout that occurs: how many checkpoints have it, its size, and whether it fits."""
    modules: list[dict[str, Any]]
    """Kinds of module of the commonest layout: number, r, shapes, mean norms of A, B and ΔW over the checkpoints."""
    spread: dict[str, Any]
    """How much the token positions of the commonest layout vary over its checkpoints."""
    gram: Matrix
    """Inner products of the weight changes, ``[M, M]``."""
    points: Matrix
    """The checkpoints on the two main axes of their weight changes, ``[M, 2]``."""
    explained: list[float]
    """Share of the variance on each of these axes."""
    outliers: dict[int, list[str]]
    """Index of a checkpoint to the reasons why it stands out; see :mod:`loragen_train.analysis.outliers`."""
    broken: dict[str, str]
    """Path to the reason why it cannot be used."""

    @property
    def task_names(self) -> list[str]:
        """The tasks, of length T."""
        return list(dict.fromkeys(self.tasks))

    @property
    def cosine(self) -> Matrix:
        """Cosines of the weight changes of all checkpoints, ``[M, M]``."""
        return cosines(self.gram)

    @property
    def task_cosine(self) -> Matrix:
        """Cosines of the tasks' mean weight changes, ``[T, T]``."""
        return cosines(task_gram(self.gram, self.tasks, self.task_names))

    @property
    def between_tasks(self) -> float | None:
        """Share of the variance of ΔW that lies between the tasks' means; None where nothing varies."""
        weights = np.array([self.tasks.count(name) for name in self.task_names]) / len(self.tasks)
        centre = float(self.gram.mean())
        total = float(np.diag(self.gram).mean()) - centre
        means = np.diag(task_gram(self.gram, self.tasks, self.task_names))
        # Below round-off nothing varies.
        return min(max(float(weights @ means - centre) / total, 0.0), 1.0) if total > 1e-12 * centre else None

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON values; what is no number (NaN) becomes null."""
        norms = np.sqrt(np.diag(self.gram))
        checkpoints = [
            {
                "path": report.path,
                "task": task,
                "layout": report.fingerprint,
                "num_parameters": report.num_parameters,
                "norm_delta": float(norms[index]),
                "projection": self.points[index].tolist(),
                "outlier": self.outliers.get(index, []),
            }
            for index, (report, task) in enumerate(zip(self.reports, self.tasks, strict=True))
        ]
        cosine = self.cosine
        content = {
            "folder": self.folder,
            "token_dim": self.token_dim,
            "max_tokens": self.max_tokens,
            "num_checkpoints": len(self.reports),
            "layouts": self.layouts,
            "modules": self.modules,
            "spread": self.spread,
            "tasks": [
                {"name": name, "num_checkpoints": self.tasks.count(name), "cosine_within": self._within(name, cosine)}
                for name in self.task_names
            ],
            "task_cosine": self.task_cosine.tolist(),
            "between_tasks": self.between_tasks,
            "explained": self.explained,
            "checkpoints": checkpoints,
            "cosine": cosine.tolist(),
            "broken": self.broken,
        }
        return dict(_without_nan(content))

    def _within(self, name: str, cosine: Matrix) -> float | None:
        """Mean cosine of the pairs of one task; None where it has one checkpoint."""
        who = [index for index, task in enumerate(self.tasks) if task == name]
        pairs = cosine[np.ix_(who, who)][np.triu_indices(len(who), k=1)]
        return float(pairs.mean()) if pairs.size else None


def analyze_zoo(
    folder: Path, *, max_tokens: int | str = 512, token_dim: int = 384, **read_options: Any
) -> ZooAnalysis:
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
    paths = find_adapters(folder)
    reports, broken = _describe(paths, token_dim, read_options)
    if not reports:
        first = next(iter(broken))
        raise LoragenTrainError(
            f"None of the {counted(len(broken), 'checkpoint')} in {folder} can be used; the first: {broken[first]}"
        )
    commonest = Counter(report.fingerprint for report in reports).most_common(1)[0][0]
    alike = [report for report in reports if report.fingerprint == commonest]
    tasks = [_task_of(Path(report.path), folder) for report in reports]
    with ProgressBar("comparing", total=len(reports), unit="checkpoint") as bar:
        readable = [Path(report.path) for report in reports]
        gram = delta_gram(readable, lambda path: read_adapter(path, **read_options), on_done=bar.advance)
    points, explained = principal_axes(gram)
    return ZooAnalysis(
        folder=str(folder),
        token_dim=token_dim,
        max_tokens=max_tokens,
        reports=reports,
        tasks=tasks,
        layouts=_layouts(reports, max_tokens),
        modules=_kinds_of_modules(alike),
        spread=_spread(alike, token_dim, read_options),
        gram=gram,
        points=points,
        explained=explained,
        outliers=find_outliers(gram, tasks),
        broken=broken,
    )


def _describe(paths: list[Path], token_dim: int, options: dict[str, Any]) -> tuple[list[AdapterReport], dict[str, str]]:
    reports: list[AdapterReport] = []
    broken: dict[str, str] = {}
    with ProgressBar("reading", total=len(paths), unit="checkpoint") as bar:
        for path in paths:
            try:
                report = inspect_adapter(path, token_dim=token_dim, **options)
            except LoraTokenizerError as error:
                broken[str(path)] = str(error)
            else:
                if report.num_nonfinite:
                    broken[str(path)] = f"{path} holds {report.num_nonfinite} values that are NaN or Inf"
                else:
                    reports.append(report)
            bar.advance()
    return reports, broken


def _task_of(path: Path, folder: Path) -> str:
    if path == folder:
        return folder.absolute().parent.name
    return folder.absolute().name if path.parent == folder else path.parent.relative_to(folder).as_posix()


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
            adapter: LoraAdapter = read_adapter(report.path, **options)
            yield layout.encode(adapter.to(torch.float32))

    stats = TokenStats.from_tokens(tokens())
    std = stats.std[layout.mask()].double()
    is_constant = std <= stats.floor
    quantiles = np.quantile(std.numpy(), [0.0, 0.05, 0.5, 0.95, 1.0]).tolist()
    return {
        "num_checkpoints": len(reports),
        "num_positions": std.numel(),
        "constant": float(is_constant.double().mean()),
        "std": dict(zip(("min", "p05", "median", "p95", "max"), quantiles, strict=True)),
        "rms_of_mean": float(stats.mean[layout.mask()].double().square().mean().sqrt()),
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
