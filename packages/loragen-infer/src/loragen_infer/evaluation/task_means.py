"""What an evaluation's baselines need of the training tasks: embeddings of their prompts, and their mean tokens.

The mean tokens are as large as all adapters together, so they lie in a safetensors file of their own, written and read
one task at a time; its header comes last, into the place that was kept for it.

Legend: K training tasks, P prompts of a task, D width of an embedding, N tokens, W values per token.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loragen_infer.errors import LoragenInferError
from loragen_infer.files import atomic_file

__all__ = ["TASK_MEANS_NAME", "TaskMeans", "TaskMeansWriter", "kept_prompts", "read_task_means"]

TASK_MEANS_NAME = "task_means.safetensors"
_FORMAT = "loragen-task-means"
_HEADER_BYTES = 2048
# Enough to draw subsets from; all of a large data set would outweigh the tokens of a small adapter.
_MAX_PROMPTS = 256
_DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskMeans:
    """Means over the prompts and over the checkpoints of each training task."""

    names: tuple[str, ...]
    """Names of the K tasks."""
    condition_means: Tensor
    """float32 ``[K, D]``: mean of the L2-normalised embeddings of the task's training prompts, not normalised again."""
    token_means: Any
    """float32 ``[K, N, W]``, the mean of the tokens of the task's checkpoints as encoded (not z-scored): a tensor, or a
    slice of a file, which reads what it is indexed with."""
    prompt_embeddings: Sequence[Tensor] | None = None
    """By task, L2-normalised embeddings ``[P, D]`` of single training prompts; None where only the means are known."""


def kept_prompts(prompts_PD: Tensor) -> Tensor:
    """Return the embeddings that are kept of a task's prompts: all, or of very many some, evenly spread."""
    kept = torch.linspace(0, len(prompts_PD) - 1, min(len(prompts_PD), _MAX_PROMPTS)).long()
    return prompts_PD[kept]


class TaskMeansWriter:
    """Writes a file of task means, one task at a time; the file appears when the block ends well.

    Raises:
        LoragenInferError: The system refuses to write, or the block adds no task.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with TaskMeansWriter(Path(folder) / TASK_MEANS_NAME, num_tokens=600, token_dim=384) as writer:
        ...         writer.add("sums", torch.zeros(128, 384), torch.zeros(600, 384))
        ...     read_task_means(Path(folder) / "generator.safetensors").names
        ('sums',)
    """

    def __init__(self, path: Path, *, num_tokens: int, token_dim: int) -> None:
        self._path, self._token_shape = path, (num_tokens, token_dim)
        self._names: list[str] = []
        self._prompts: list[Tensor] = []
        self._means: list[Tensor] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stream = stack.enter_context(stack.enter_context(atomic_file(self._path)).open("wb"))
            self._stream.write(b" " * (8 + _HEADER_BYTES))
            self._stack = stack.pop_all()
        return self

    def add(self, name: str, prompt_embeddings_PD: Tensor, mean_tokens_NW: Tensor) -> None:
        """Write one task: L2-normalised embeddings of its training prompts, and its checkpoints' mean tokens.

        The tokens are as encoded (not z-scored). Of very many prompts some are kept, and the mean of all.

        Raises:
            LoragenInferError: The name is there already, a shape is another, or a value is not finite.
        """
        if name in self._names:
            raise LoragenInferError(f"the task means have the task {name!r} twice; give every task a name of its own.")
        if tuple(mean_tokens_NW.shape) != self._token_shape:
            raise LoragenInferError(
                f"the task means of {name!r} have tokens {tuple(mean_tokens_NW.shape)}, not {self._token_shape}."
            )
        prompts, tokens = (value.detach().float().cpu() for value in (prompt_embeddings_PD, mean_tokens_NW))
        mean = prompts.mean(dim=0)
        if not tokens.isfinite().all() or not mean.isfinite().all():
            raise LoragenInferError(f"the task means of {name!r} hold NaN or Inf, or are of no prompt; mend the task.")
        self._stream.write(tokens.contiguous().numpy().data)
        self._names.append(name)
        self._means.append(mean)
        self._prompts.append(kept_prompts(prompts))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is not None:
                raise error
            self._finish()

    def _finish(self) -> None:
        if not self._names:
            raise LoragenInferError(f"{self._path} would hold no task; add one.")
        parts = {
            "condition_means": torch.stack(self._means),
            "prompt_embeddings": torch.cat(self._prompts),
            "num_prompts": torch.tensor([len(prompts) for prompts in self._prompts]),
            "names": torch.tensor(list(json.dumps(self._names).encode()), dtype=torch.uint8),
        }
        shape = (len(self._names), *self._token_shape)
        end = 4 * torch.Size(shape).numel()
        header: dict[str, Any] = {
            "__metadata__": {"format": _FORMAT, "format_version": "1"},
            "token_means": {"dtype": "F32", "shape": shape, "data_offsets": (0, end)},
        }
        for name, value in parts.items():
            start, end = end, end + value.nbytes
            header[name] = {"dtype": _DTYPES[value.dtype], "shape": value.shape, "data_offsets": (start, end)}
            self._stream.write(value.numpy().data)
        self._stream.seek(0)
        self._stream.write(_HEADER_BYTES.to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER_BYTES))


def read_task_means(bundle: Path) -> TaskMeans | None:
    """Return the task means beside a bundle file, or those within one of an older version; None where there are none.

    Raises:
        LoragenInferError: A file is damaged.
    """
    file = bundle.parent / TASK_MEANS_NAME
    is_old = not file.is_file()
    if is_old and bundle.suffix != ".safetensors":
        return None
    try:
        with safe_open(bundle if is_old else file, framework="pt") as reader:
            if is_old:
                names, prompts = (reader.metadata() or {}).get("task_names"), None
            else:
                names = bytes(reader.get_tensor("names").tolist())
                prompts = reader.get_tensor("prompt_embeddings").split(reader.get_tensor("num_prompts").tolist())
            if names is None:
                return None
            prefix = "tasks." if is_old else ""
            return TaskMeans(
                names=tuple(json.loads(names)),
                condition_means=reader.get_tensor(f"{prefix}condition_means"),
                token_means=reader.get_slice(f"{prefix}token_means"),
                prompt_embeddings=prompts,
            )
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        where = bundle if is_old else file
        raise LoragenInferError(f"{where} has no readable task means ({error}); copy or train it again.") from error
