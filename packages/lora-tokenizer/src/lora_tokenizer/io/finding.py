"""Finding all adapters below a folder, or the one that a path stands for: what counts as one, and in which order."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NoReturn

from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.io.atomic import is_temporary
from lora_tokenizer.io.reading import BIN_NAME, TORCH_SUFFIXES
from lora_tokenizer.io.writing import CONFIG_NAME, WEIGHTS_NAME
from lora_tokenizer.names import natural_key


def find_adapters(folder: str | Path) -> list[Path]:
    """All adapters at and below `folder`, in natural order (checkpoint-9 before checkpoint-10), each folder's own last.

    So what a trainer ended with comes after the checkpoints in its output folder, and the last is the last of a task.

    An adapter is a folder with PEFT's files (an adapter's own, such as optimizer.pt, may lie beside them), or a bare
    .safetensors, .pt, .pth or .ckpt file in another folder, which may hold an adapter_config.json for all of them.
    Links to folders are not followed. An adapter's folder gives that adapter, and those of its checkpoints that lie in
    folders below it; the one adapter that a path stands for is found by `find_adapter`.

    Raises:
        LoraTokenizerError: there is none, or a folder cannot be read.
    """
    root = Path(folder)
    try:
        if stat.S_ISREG(root.stat().st_mode):
            return [root]
    except FileNotFoundError as error:
        raise LoraTokenizerError(f"{root} does not exist: give a folder of adapters") from error
    except (OSError, ValueError) as error:
        raise _cannot_read(root, error) from error
    found: list[Path] = []
    for where, folders, names in os.walk(root, onerror=_refuse):
        here = Path(where)
        folders[:] = [name for name in folders if not is_temporary(here / name)]
        files = [here / name for name in names if not name.startswith(".")]
        files = [file for file in files if file.suffix in (".safetensors", *TORCH_SUFFIXES)]
        has_weights = WEIGHTS_NAME in names or BIN_NAME in names
        if CONFIG_NAME in names and (has_weights or not files):
            found.append(here)
        else:
            found += files
    if not found:
        raise LoraTokenizerError(
            f"{root} holds no adapters: neither a folder with {CONFIG_NAME} nor a .safetensors, .pt, .pth or .ckpt file"
        )
    return sorted(found, key=lambda path: (_place(path.relative_to(root)), path))


def find_adapter(path: str | Path) -> Path:
    """The adapter that `path` stands for: the one that lies there itself, or else the last one below it.

    A trainer's output folder so stands for the adapter that it ended with, and not for a checkpoint beside it.

    Raises:
        LoraTokenizerError: there is none, or a folder cannot be read.
    """
    root = Path(path)
    found = find_adapters(root)
    is_adapter = root in found and any((root / name).is_file() for name in (WEIGHTS_NAME, BIN_NAME))
    return root if is_adapter else [other for other in found if other != root or len(found) == 1][-1]


def _place(path: Path) -> list[tuple[int, tuple[str | int, ...]]]:
    """Sort key of a path: natural order, and after all that lies below it."""
    return [*((0, natural_key(part)) for part in path.parts), (1, ())]


def _refuse(error: OSError) -> NoReturn:
    raise _cannot_read(Path(error.filename), error) from error


def _cannot_read(path: Path, error: OSError | ValueError) -> LoraTokenizerError:
    # a ValueError is Python's word for a name with a null character
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return LoraTokenizerError(f"cannot read {str(path)[:200]}: {reason}: give a folder of adapters")
