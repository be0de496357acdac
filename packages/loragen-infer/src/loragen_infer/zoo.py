"""The manifest of a zoo, ``zoo.json``: all that training, evaluation and analysis need to know of its tasks.

``collect`` and ``import`` write it, every other command reads it, so that a task is written down once. The format,
which docs/formats/zoo-json.md documents field by field, is versioned: a file of another version is refused, and
unknown fields are ignored, so that one can be added without a new version.
"""

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from loragen_infer.errors import LoragenInferError
from loragen_infer.files import reading, write_json
from loragen_infer.words import nearest

__all__ = [
    "INITIAL_NAME",
    "MANIFEST_NAME",
    "JointFold",
    "SampleFile",
    "TaskQuality",
    "ZooManifest",
    "ZooTask",
    "path_in_zoo",
]

MANIFEST_NAME = "zoo.json"
INITIAL_NAME = "initial_adapter"
"""Folder beside it of the initialisation from which all adapters were trained, where ``collect`` trained them."""
_FORMAT, _VERSION = "loragen-zoo", 1


@dataclass(frozen=True, kw_only=True)
class SampleFile:
    """A JSONL file of samples."""

    path: str
    """Relative to the folder of ``zoo.json``, with forward slashes; absolute where the file lies elsewhere."""
    num_samples: int
    """Number of its lines."""
    sha256: str
    """Of its bytes."""

    @classmethod
    def of(cls, file: Path, folder: Path) -> "SampleFile":
        """Return the description of ``file`` for a manifest in ``folder``."""
        content = file.read_bytes()
        num_samples = sum(1 for line in content.splitlines() if line.strip())
        return cls(path=path_in_zoo(file, folder), num_samples=num_samples, sha256=hashlib.sha256(content).hexdigest())


@dataclass(frozen=True, kw_only=True)
class TaskQuality:
    """How well a task's adapter answers test samples, beside the base model; nats per response token."""

    nll: float
    """Negative log-likelihood of the last checkpoint."""
    base_nll: float
    """Negative log-likelihood of the base model."""

    @property
    def gain(self) -> float:
        """By how much the adapter is better than the base model."""
        return self.base_nll - self.nll


@dataclass(frozen=True, kw_only=True)
class ZooTask:
    """One task of a zoo."""

    name: str
    """Name of the task."""
    sources: list[str] = field(default_factory=list)
    """Where its samples came from, as its maker named them."""
    held_out: bool = False
    """Whether training must see nothing of it."""
    prompts: SampleFile | None = None
    """Its prompts, and the responses that adapters are trained on where there are some."""
    test: SampleFile | None = None
    """Further prompts with responses, which its own adapter was not trained on. Those that another's was are left out
    by ``fit`` and ``evaluate``."""
    adapters: list[str] = field(default_factory=list)
    """Its checkpoints, the last one last: PEFT folders or files, as paths like those of sample files."""
    quality: TaskQuality | None = None
    """What its last checkpoint is worth; None: not measured."""
    failure: str | None = None
    """Why it has no adapter that it should have; None: nothing failed."""


@dataclass(frozen=True, kw_only=True)
class JointFold:
    """One of the parts that a zoo's training tasks are divided into, so that for each task there are adapters that have
    seen nothing of it: those of the other folds."""

    adapter: str
    """The adapter that was trained on the fold's tasks together, as a path like the others."""
    tasks: list[str]
    """Their names."""


@dataclass(frozen=True, kw_only=True)
class ZooManifest:
    """The content of ``zoo.json``, and the folder that its paths are relative to."""

    base_model: str
    """The language model of all adapters, as its maker named it."""
    base_model_path: str | None = None
    """Where the zoo has it unpacked; None: it is found by its name."""
    lora: dict[str, Any] = field(default_factory=dict)
    """Settings that all adapters share, as in PEFT's LoraConfig: ``r``, ``lora_alpha``, ``target_modules``, …"""
    canonical: Literal["none", "svd"] = "none"
    """``svd``: the adapters grew from unrelated initialisations and are only comparable in canonical form."""
    tasks: list[ZooTask] = field(default_factory=list)
    """All tasks."""
    joint: str | None = None
    """One adapter trained on all tasks that are not held out, as a path like the others."""
    joint_folds: list[JointFold] = field(default_factory=list)
    """The folds whose adapters' A and B that adapter is the mean of; none where it was trained in one piece."""
    folder: Path = Path()
    """The folder of the file; no part of it."""

    @classmethod
    def read(cls, zoo: "str | Path") -> "ZooManifest":
        """Return the manifest of the folder ``zoo``, or in the file of that name.

        Raises:
            LoragenInferError: There is none, or it is not what this version writes.
        """
        file = Path(zoo)
        with reading(file):
            file = file / MANIFEST_NAME if file.is_dir() else file
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise LoragenInferError(
                f"{zoo} has no {MANIFEST_NAME}; give a folder that loragen-train collect or import has written."
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise LoragenInferError(f"{file} cannot be read as JSON: {error}.") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise LoragenInferError(f"{file} is no manifest of a zoo: its format is not {_FORMAT!r}.")
        if content.get("version") != _VERSION:
            raise LoragenInferError(
                f"{file} has version {content.get('version')!r}, but this loragen reads version {_VERSION}; update it."
            )
        # Imported here, as most that import this module read no manifest.
        from pydantic import TypeAdapter, ValidationError

        try:
            manifest = TypeAdapter(cls).validate_python({**content, "folder": file.parent.absolute()})
        except RecursionError as error:
            raise LoragenInferError(f"{file} is nested too deeply; no zoo is.") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "its content"
            raise LoragenInferError(f"{file}: {place}: {first['msg']} (it is {first['input']!r:.60}).") from error
        manifest._check(file)
        return manifest

    def write(self) -> Path:
        """Write the manifest to its folder, whole or not at all, and return the file."""
        file = self.folder / MANIFEST_NAME
        content = asdict(self)
        del content["folder"]
        write_json(file, {"format": _FORMAT, "version": _VERSION, **content})
        return file

    def path(self, path: str) -> Path:
        """Return where something that the manifest names lies."""
        return self.folder / path

    def samples(self, file: SampleFile) -> Path:
        """Return where a file of samples lies, if it still is the one that was described.

        Raises:
            LoragenInferError: It cannot be read, or has been changed.
        """
        path, manifest = self.path(file.path), self.folder / MANIFEST_NAME
        try:
            content = path.read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise LoragenInferError(
                f"{path}, which {manifest} names, cannot be read: {reason}; put it back."
            ) from error
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise LoragenInferError(
                f"{path} has been changed since {manifest} was written: its SHA-256 is not {file.sha256:.12}…; put the "
                "file back, or make the zoo again."
            )
        return path

    def task(self, name: str) -> ZooTask:
        """Return the task called ``name``.

        Raises:
            LoragenInferError: There is none.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        known = nearest(name, [task.name for task in self.tasks])
        raise LoragenInferError(f"{self.folder / MANIFEST_NAME} has no task {name!r}{known}.")

    @property
    def training_tasks(self) -> list[ZooTask]:
        """The tasks that a generator learns from: not held out, and with an adapter."""
        return [task for task in self.tasks if not task.held_out and task.adapters]

    @property
    def held_out_tasks(self) -> list[ZooTask]:
        """The tasks of which training must see nothing."""
        return [task for task in self.tasks if task.held_out]

    def _check(self, file: Path) -> None:
        for task in self.tasks:
            # Names become those of files.
            if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", task.name) is None:
                raise LoragenInferError(
                    f"{file} calls a task {task.name!r}; names have letters, digits, '_', '.' and '-' only."
                )
        names = Counter(task.name for task in self.tasks)
        if twice := next((name for name, count in names.items() if count > 1), None):
            raise LoragenInferError(f"{file} has two tasks called {twice!r:.60}.")
        if len(self.joint_folds) == 1:
            raise LoragenInferError(f"{file} has one fold of the joint adapter; there are several, or none.")
        files = [part for task in self.tasks for part in (task.prompts, task.test) if part is not None]
        named = [part.path for part in files] + [path for task in self.tasks for path in task.adapters]
        named += [path for path in (self.joint, self.base_model_path) if path is not None]
        named += [fold.adapter for fold in self.joint_folds]
        for path in named:
            if "\0" in path:
                raise LoragenInferError(f"{file} names {path!r:.60}, which holds a zero byte; no file is called so.")
            # A file from somebody else may name what it brought along, or say openly where to look.
            if not path or (not Path(path).is_absolute() and ".." in Path(path).parts):
                raise LoragenInferError(f"{file} names {path!r:.60}, which leaves its folder; give an absolute path.")


def path_in_zoo(path: Path, folder: Path) -> str:
    """Return ``path`` as a manifest in ``folder`` writes it: relative where it lies inside, else absolute."""
    absolute = path.absolute()
    inside = absolute.is_relative_to(folder.absolute())
    return (absolute.relative_to(folder.absolute()) if inside else absolute).as_posix()
