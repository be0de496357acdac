"""Which checkpoints a folder has and of which tasks: as its ``zoo.json`` lists them, or else by where they lie."""

from pathlib import Path

from lora_tokenizer import find_adapters
from loragen_infer.zoo import MANIFEST_NAME, ZooManifest

from loragen_train.errors import LoragenTrainError

__all__ = ["find_checkpoints"]


def find_checkpoints(folder: Path) -> dict[Path, str]:
    """Return the checkpoints of a zoo, each with its task; those that ``zoo.json`` lists need not be there.

    Without a ``zoo.json`` they are all at and below ``folder``, and a task is the folder that a checkpoint lies in.

    Raises:
        LoraTokenizerError: There are no checkpoints.
        LoragenTrainError: ``zoo.json`` lists none.
        LoragenInferError: It is damaged.
    """
    if not (folder / MANIFEST_NAME).is_file():
        return {path: _task_of(path, folder) for path in find_adapters(folder)}
    manifest = ZooManifest.read(folder)
    found = {manifest.path(path): task.name for task in manifest.tasks for path in task.adapters}
    if not found:
        raise LoragenTrainError(f"{folder / MANIFEST_NAME} lists no adapters; collect the zoo again.")
    return found


def _task_of(path: Path, folder: Path) -> str:
    if path == folder:
        return folder.absolute().parent.name
    return folder.absolute().name if path.parent == folder else path.parent.relative_to(folder).as_posix()
