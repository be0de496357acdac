"""How a folder of sharded adapters lies on disk, and one adapter out of it.

``adapter_config.json`` is the PEFT config of all. ``shards/shard-000000.safetensors`` holds the tensors of its adapters
as ``ID/tensor name``; the Parquet file of the same name beside it lists them, and is written last, so that a shard is
finished when that is there. ``manifest.parquet`` is these lists in one.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from loragen_infer.bundle.sealed_file import write_sealed
from loragen_infer.errors import LoragenInferError, reason_of
from loragen_infer.files import atomic_file, write_json

if TYPE_CHECKING:
    from lora_tokenizer import LoraAdapter

__all__ = [
    "CONFIG_NAME",
    "MANIFEST_NAME",
    "SHARDS",
    "largest_shard_size",
    "mark_of",
    "read_sharded",
    "shard_beyond",
    "shard_name",
    "write_config",
    "write_manifest",
    "write_shard",
]

CONFIG_NAME = "adapter_config.json"
MANIFEST_NAME = "manifest.parquet"
SHARDS = "shards"
_SHARD_NAME = re.compile(rf"{SHARDS}/shard-\d{{6,}}\.safetensors")
_MARK = "loragen_shard"
_NUM_BYTES = "loragen_num_bytes"
# The format's own limit, and what an entry takes beside its name.
_MAX_HEADER, _ENTRY = 100_000_000, 110
_ROWS_PER_GROUP = 65_536


def shard_name(number: int) -> str:
    """Return the name of a shard in its folder."""
    return f"{SHARDS}/shard-{number:06d}.safetensors"


def shard_beyond(folder: Path, number: int) -> Path | None:
    """Return a shard that is there, of that number or a higher one, or None."""
    there = (path for path in (folder / SHARDS).glob("shard-*") if _SHARD_NAME.fullmatch(f"{SHARDS}/{path.name}"))
    return next((path for path in there if int(path.stem.removeprefix("shard-")) >= number), None)


def largest_shard_size(tensor_names: Iterable[str], *, longest_id: int) -> int:
    """Return how many adapters with such tensors the header of one safetensors file can name."""
    return (_MAX_HEADER - 1000) // sum(len(name) + longest_id + _ENTRY for name in tensor_names)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the PEFT config of all adapters; one of other adapters that is there already is an error."""
    path = folder / CONFIG_NAME
    if not path.exists():
        write_json(path, config)
    elif _read_json(path) != json.loads(json.dumps(config)):
        raise LoragenInferError(f"{path} is of other adapters; choose another --output or remove it.")


def write_shard(
    folder: Path,
    number: int,
    adapters: "Iterable[tuple[str, LoraAdapter]]",
    rows: Sequence[Mapping[str, object]],
    fingerprint: str,
) -> None:
    """Write the adapters, each with its id, and then their lines of the manifest, to which the shard is added."""
    import pyarrow
    import pyarrow.parquet

    path = folder / shard_name(number)
    tensors = {f"{name}/{key}": tensor for name, adapter in adapters for key, tensor in adapter.tensors.items()}
    with atomic_file(path) as part:
        write_sealed(part, tensors, {"format": "pt", _MARK: fingerprint})
    columns = ("id", "fingerprint", "shard", "scale", "num_prompts", "base_model")
    types = (pyarrow.string(), pyarrow.string(), pyarrow.string(), pyarrow.float64(), pyarrow.int32(), pyarrow.string())
    schema = pyarrow.schema(list(zip(columns, types, strict=True)))
    table = pyarrow.Table.from_pylist([{**row, "shard": shard_name(number)} for row in rows], schema=schema)
    mark = {_MARK: fingerprint, _NUM_BYTES: str(path.stat().st_size)}
    with atomic_file(path.with_suffix(".parquet")) as part:
        pyarrow.parquet.write_table(table.replace_schema_metadata(mark), part)


def mark_of(folder: Path, number: int) -> tuple[str | None, bool]:
    """Return the fingerprint of what is at the place of a shard (None: nothing, "": unknown), and if it is finished."""
    import pyarrow
    import pyarrow.parquet

    path = folder / shard_name(number)
    try:
        metadata = pyarrow.parquet.read_schema(path.with_suffix(".parquet")).metadata or {}
        mark = metadata.get(_MARK.encode(), b"").decode()
        return mark, path.is_file() and str(path.stat().st_size) == metadata.get(_NUM_BYTES.encode(), b"").decode()
    except FileNotFoundError:
        pass
    except (OSError, pyarrow.ArrowException):
        return "", False
    try:
        with safe_open(path, framework="pt") as reader:
            return (reader.metadata() or {}).get(_MARK, ""), False
    except FileNotFoundError:
        return None, False
    except (OSError, SafetensorError):
        return "", False


def write_manifest(folder: Path, numbers: Iterable[int]) -> None:
    """Write the manifest of the shards with these numbers, which are finished."""
    import pyarrow
    import pyarrow.parquet

    writer, tables = None, []
    with atomic_file(folder / MANIFEST_NAME) as part:
        try:
            for number in numbers:
                table = pyarrow.parquet.read_table((folder / shard_name(number)).with_suffix(".parquet"))
                tables.append(table.replace_schema_metadata(None))
                writer = writer or pyarrow.parquet.ParquetWriter(part, tables[0].schema)
                # Larger groups than a shard, since what is said of each of them is read with every look-up.
                if sum(map(len, tables)) >= _ROWS_PER_GROUP:
                    writer.write_table(pyarrow.concat_tables(tables))
                    tables = []
            if writer is not None and tables:
                writer.write_table(pyarrow.concat_tables(tables))
        finally:
            if writer is not None:
                writer.close()


def read_sharded(folder: str | Path, adapter_id: str) -> "LoraAdapter":
    """Return one adapter of a folder that ``loragen-infer generate --ray`` wrote.

    Args:
        folder: The folder with ``manifest.parquet``.
        adapter_id: The adapter's id in it.

    Raises:
        LoragenInferError: There is no such folder or id, or a file is damaged.
        LoraTokenizerError: What is there under the id is no adapter.

    Example:
        .. code-block:: python

            read_sharded("adapters", "sums").save_pretrained("my-adapter")
    """
    from lora_tokenizer import AdapterConfig, LoraAdapter
    from lora_tokenizer.io.finite import check_finite

    root = Path(folder)
    path = root / _find_shard(root / MANIFEST_NAME, adapter_id)
    start = f"{adapter_id}/"
    try:
        with safe_open(path, framework="pt") as reader:
            names = [name for name in reader.keys() if name.startswith(start)]  # noqa: SIM118  # no iterator
            tensors = {name.removeprefix(start): reader.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise LoragenInferError(f"{path} cannot be read ({reason_of(error)}); copy it again.") from error
    adapter = LoraAdapter(config=AdapterConfig.from_peft(_read_json(root / CONFIG_NAME)), tensors=tensors)
    check_finite(adapter, f"{path}: {adapter_id}")
    return adapter


def _find_shard(manifest: Path, adapter_id: str) -> str:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise LoragenInferError(
            'Reading a manifest needs pyarrow, which is not installed: pip install "loragen-infer[ray]".'
        ) from error

    try:
        found = pyarrow.parquet.read_table(manifest, columns=["shard"], filters=[("id", "==", adapter_id)])
    except FileNotFoundError as error:
        raise LoragenInferError(
            f"{manifest.parent} has no {MANIFEST_NAME}; give a folder that generate --ray wrote."
        ) from error
    except (OSError, pyarrow.ArrowException) as error:
        raise LoragenInferError(f"{manifest} cannot be read ({reason_of(error)}); copy it again.") from error
    names = found["shard"].to_pylist()
    if not names:
        raise LoragenInferError(f"{manifest} has no adapter {adapter_id!r}; its column id has those that are there.")
    # A manifest may come from anywhere, and a path in it could lead elsewhere.
    if not isinstance(names[0], str) or not _SHARD_NAME.fullmatch(names[0]):
        raise LoragenInferError(f"{manifest} names the shard {names[0]!r} for {adapter_id!r}, which none is called.")
    return names[0]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoragenInferError(f"{path} cannot be read ({reason_of(error)}); copy it again.") from error
