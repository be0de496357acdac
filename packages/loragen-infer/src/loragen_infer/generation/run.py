"""The work behind ``loragen-infer generate``: which requests there are, which are done, and where each result goes.

One adapter (all prompts are one task) goes to ``output`` itself; a prompt file without ``pool`` is a batch, whose
adapters go into the folder ``output`` under their ids, with a manifest, or all into one file if it ends in ``.pt``.
Everything wrong with options, prompts and output is found before anything heavy is loaded.
"""

import itertools
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.encoder.prompt_checks import check_prompts
from loragen_infer.errors import LoragenInferError
from loragen_infer.generation.config import GenerateConfig
from loragen_infer.generation.prompt_file import PromptFile, Request, opened_prompt_file
from loragen_infer.progress import ProgressBar

if TYPE_CHECKING:
    import torch
    from lora_tokenizer import LoraAdapter

    from loragen_infer.generator import LoraGenerator

    _Contents = tuple[Callable[[LoraAdapter], Mapping[str, torch.Tensor]], dict[str, object]]

__all__ = ["Outcome", "run_generate"]

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run did."""

    num_made: int
    """Adapters generated now."""
    num_kept: int
    """Adapters that were there already, from the same prompts, generator and settings."""
    num_parameters: int
    """Values in an adapter."""
    base_model: str | None
    """The base model that the adapters belong to."""


def run_generate(config: GenerateConfig) -> Outcome:
    """Generate what ``config`` asks for.

    Raises:
        LoragenInferError: As the messages say; what is finished by then is kept, and nothing is half-written.
    """
    with ExitStack() as stack:
        file = None
        if config.prompt_file is not None:
            file = stack.enter_context(opened_prompt_file(config.prompt_file))
        output = Path(config.output)
        if config.is_batch and file is not None:
            file.check()
            _check_writable(output.parent if config.is_one_file else output)
            if config.is_one_file:
                _refuse_unknown(output)
            generator = _load(config)
            _make(output.parent if config.is_one_file else output)
            run = _batch_in_one_file if config.is_one_file else _batch_in_folder
            return run(config, file, generator, output)
        pooled = [prompt for request in file or () for prompt in request.prompts]
        request = Request(id=output.stem or "adapter", prompts=(*config.prompts, *pooled))
        check_prompts(request.prompts)
        _check_writable(output.parent)
        _refuse_unknown(output)
        return _single(config, request, _load(config), output)


def _load(config: GenerateConfig) -> "LoraGenerator":
    from loragen_infer.generator import LoraGenerator

    return LoraGenerator.from_pretrained(
        config.model,
        device=config.device,
        dtype=config.dtype,
        compile=config.compile,
        cache_dir=Path(config.cache_dir) if config.cache_dir else None,
    )


def _check_writable(folder: Path) -> None:
    """Find out whether ``folder`` can be made and written to, before minutes of work prove that it cannot.

    Nothing is made yet, so that a model that is missing leaves no empty folder behind.
    """
    import tempfile

    place = folder.absolute()
    while not place.exists() and not place.is_symlink():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise LoragenInferError(
            f"{folder} cannot be written to: {error.strerror or error}; choose another --output."
        ) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoragenInferError(
            f"{folder} cannot be made: {error.strerror or error}; choose another --output."
        ) from error


def _refuse_unknown(output: Path) -> None:
    """Raise LoragenInferError if ``output`` is something that no run of this command made."""
    from loragen_infer.generation.writer import read_mark

    is_empty_folder = output.is_dir() and not any(output.iterdir())
    if (output.exists() or output.is_symlink()) and not is_empty_folder and read_mark(output) is None:
        raise LoragenInferError(f"{output} exists already; choose another --output or remove it.")


class _Writer:
    """Fingerprints requests and puts each adapter in its place."""

    def __init__(self, config: GenerateConfig, generator: "LoraGenerator") -> None:
        self._config, self._generator = config, generator
        self._bundle_fingerprint = generator.bundle.fingerprint
        self._settings = (config.kind, repr(float(config.scale)))

    def fingerprint(self, request: Request) -> str:
        return request.fingerprint(self._generator.fingerprint, self._settings)

    def is_done(self, request: Request, path: Path) -> bool:
        """Whether the adapter is there.

        Raises:
            LoragenInferError: Something else is there.
        """
        from loragen_infer.generation.writer import read_mark

        if not path.exists() and not path.is_symlink():
            return False
        if read_mark(path) == self.fingerprint(request):
            return True
        if path.is_dir() and not any(path.iterdir()):
            return False
        raise LoragenInferError(
            f"{path} exists already and was not made from the same prompts, model and options; choose another "
            "--output or remove it."
        )

    def write(self, request: Request, adapter: "LoraAdapter", path: Path) -> None:
        from loragen_infer.generation.card import model_card
        from loragen_infer.generation.writer import write_in_format

        bundle = self._generator.bundle
        fingerprint = self.fingerprint(request)
        card = model_card(
            request,
            base_model=bundle.base_model,
            generator_fingerprint=self._bundle_fingerprint,
            request_fingerprint=fingerprint,
            scale=self._config.scale,
        )
        try:
            write_in_format(
                adapter,
                path,
                self._config.kind,  # type: ignore[arg-type]  # checked with the other options
                layout=bundle.layout,
                request_fingerprint=fingerprint,
                card=card,
            )
        except LoragenInferError:
            # Another process may have put the same adapter there meanwhile.
            if not self.is_done(request, path):
                raise

    def row(self, request: Request, place: dict[str, object]) -> dict[str, object]:
        """One line of a manifest."""
        return {
            "id": request.id,
            **place,
            "scale": self._config.scale,
            "prompts": list(request.prompts),
            "request": self.fingerprint(request),
            "generator": self._bundle_fingerprint,
            "base_model": self._generator.base_model,
        }

    def outcome(self, made: int, kept: int) -> Outcome:
        layout = self._generator.bundle.layout
        return Outcome(
            num_made=made,
            num_kept=kept,
            num_parameters=layout.num_values,
            base_model=self._generator.base_model,
        )


def _single(config: GenerateConfig, request: Request, generator: "LoraGenerator", output: Path) -> Outcome:
    writer = _Writer(config, generator)
    if writer.is_done(request, output):
        return writer.outcome(0, 1)
    writer.write(request, generator.generate(request.prompts, scale=config.scale), output)
    return writer.outcome(1, 0)


def _batch_in_folder(config: GenerateConfig, file: PromptFile, generator: "LoraGenerator", output: Path) -> Outcome:
    from lora_tokenizer.io.atomic import clear_leftovers

    from loragen_infer.generation.one_file import folder_lock
    from loragen_infer.generation.writer import file_suffix

    writer = _Writer(config, generator)
    suffix = file_suffix(config.kind)  # type: ignore[arg-type]  # checked with the other options

    def place(request: Request) -> Path:
        return output / f"{request.id}{suffix}"

    with folder_lock(output):
        clear_leftovers(output)
        done = [writer.is_done(request, place(request)) for request in file]
        made, kept = 0, sum(done)
        todo = (request for request, is_done in zip(file, done, strict=True) if not is_done)

        def write_manifest() -> None:
            finished = (request for request in file if place(request).exists())
            rows = (writer.row(request, {"path": place(request).name}) for request in finished)
            _write_manifest(output / _MANIFEST, rows, {request.id for request in file})

        try:
            with ProgressBar("Generating", total=len(done), unit="adapter", done=kept) as progress:
                for request, adapter in _generated(config, generator, todo):
                    writer.write(request, adapter, place(request))
                    made += 1
                    progress.advance()
        except BaseException:  # Ctrl+C too: what is finished is listed, if the disk still takes the list
            with suppress(LoragenInferError):
                write_manifest()
            raise
        write_manifest()
    return writer.outcome(made, kept)


def _batch_in_one_file(config: GenerateConfig, file: PromptFile, generator: "LoraGenerator", output: Path) -> Outcome:
    import hashlib

    from loragen_infer.generation.one_file import Spool, folder_lock
    from loragen_infer.generation.writer import read_mark

    writer = _Writer(config, generator)
    digest = hashlib.sha256()
    ids = []
    for request in file:
        digest.update(f"{request.id}\0{writer.fingerprint(request)}\0".encode())
        ids.append(request.id)
    fingerprint = digest.hexdigest()[:16]
    if output.exists():
        if read_mark(output) == fingerprint:
            return writer.outcome(0, len(ids))
        raise LoragenInferError(
            f"{output} exists already and was not made from the same prompts, model and options; choose another "
            "--output or remove it."
        )
    tensors_of, extra = _contents(config, generator)
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors_of(generator.mean_adapter()).items()}
    spool = Spool(output, shapes)
    spool.folder.mkdir(exist_ok=True)
    with folder_lock(spool.folder), closing(spool):
        kept = spool.resume(writer.fingerprint(request) for request in file)
        todo = (request for index, request in enumerate(file) if index >= kept)
        with ProgressBar("Generating", total=len(ids), unit="adapter", done=kept) as progress:
            for request, adapter in _generated(config, generator, todo):
                spool.append(tensors_of(adapter), writer.fingerprint(request))
                progress.advance()
        spool.finish({"ids": ids, **extra}, fingerprint, len(ids))
    rows = (writer.row(request, {"index": index}) for index, request in enumerate(file))
    _write_manifest(output.with_name(f"{output.stem}.{_MANIFEST}"), rows, None)
    return writer.outcome(len(ids) - kept, kept)


def _contents(config: GenerateConfig, generator: "LoraGenerator") -> "_Contents":
    """What of an adapter goes into the one file, and what goes in beside the adapters."""
    layout = generator.bundle.layout
    if config.kind == "tokens":
        return lambda adapter: {"tokens": layout.encode(adapter)}, {"layout": layout.to_json()}
    return lambda adapter: adapter.tensors, {"adapter_config": layout.config.to_peft()}


def _generated(
    config: GenerateConfig, generator: "LoraGenerator", requests: Iterable[Request]
) -> "Iterator[tuple[Request, LoraAdapter]]":
    """Every request with its adapter, a batch at a time, and at the end one warning of what was cut off."""
    waiting: deque[Request] = deque()

    def prompts() -> Iterator[tuple[str, ...]]:
        for request in requests:
            waiting.append(request)
            yield request.prompts

    with generator.encoder.one_truncation_warning():
        for adapter in generator.generate_many(prompts(), batch_size=config.batch_size, scale=config.scale):
            yield waiting.popleft(), adapter


def _write_manifest(path: Path, rows: Iterable[dict[str, object]], ids: set[str] | None) -> None:
    """Write ``rows``, those of ``ids``, after the rows of other ids that are there; ``ids`` None: instead of all."""
    from loragen_infer.files import write_jsonl

    older = () if ids is None or not path.is_file() else _rows_of_others(path, ids)
    write_jsonl(path, itertools.chain(older, rows))


def _rows_of_others(path: Path, ids: set[str]) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                row = json.loads(line)
            except ValueError:
                logger.warning("%s has a line that is not JSON; it is left out.", path)
                continue
            if isinstance(row, dict) and row.get("id") not in ids:
                yield row
