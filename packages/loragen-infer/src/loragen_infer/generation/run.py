"""The work behind ``loragen-infer generate``: which requests there are, which are done, and where each result goes.

One adapter (all prompts are one task) goes to ``output`` itself, or where its request's fingerprint is its name; a
prompt file without ``pool`` is a batch, whose adapters go into the folder ``output`` under their ids, with a manifest,
or all into one file if it ends in ``.pt``.
Everything wrong with options, prompts and output is found before anything heavy is loaded.
"""

import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.encoder.base import check_prompts
from loragen_infer.errors import LoragenInferError
from loragen_infer.files import check_writable, is_free, locked, write_jsonl
from loragen_infer.generation.config import GenerateConfig
from loragen_infer.generation.prompt_file import PromptFile, Request, opened_prompt_file, settings_of
from loragen_infer.hub.pushing import ADAPTER_FILES, check_push, push_folder
from loragen_infer.progress import ProgressBar
from loragen_infer.samples import Example, iter_jsonl, read_examples
from loragen_infer.words import counted

if TYPE_CHECKING:
    from lora_tokenizer import LoraAdapter

    from loragen_infer.generator import LoraGenerator

__all__ = ["ADAPTERS_FOLDER", "Outcome", "load_generator", "made_otherwise", "run_generate"]

logger = logging.getLogger(__name__)

ADAPTERS_FOLDER = Path("adapters")
"""Where an adapter goes that is given no place: the working directory's own folder of them."""
_MANIFEST = "manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run did."""

    path: Path
    """Where the adapter is, or the adapters."""
    num_made: int
    num_kept: int
    """Adapters that were there already, from the same prompts, generator and settings."""
    num_parameters: int
    """Values in an adapter."""
    base_model: str | None
    commit_url: str | None = None
    """The commit on the hub that has the adapter, if it was pushed."""


def run_generate(config: GenerateConfig) -> Outcome:
    """Generate what ``config`` asks for.

    Raises:
        LoragenInferError: As the messages say; what is finished by then is kept, and nothing is half-written.
    """
    for prompt in config.prompts:
        if os.path.isfile(prompt):  # noqa: PTH113  # any text may be asked for here
            logger.warning("The prompt %r is also the name of a file; to read it, give --prompt-file.", prompt)
    if config.push_to_hub is not None:
        check_push(config.push_to_hub)
    output = None if config.output is None else Path(config.output)
    with ExitStack() as stack:
        file = stack.enter_context(opened_prompt_file(config.prompt_file)) if config.prompt_file is not None else None
        if file is not None and config.is_batch:
            assert output is not None, "a batch has one"  # noqa: S101
            for _ in file:  # which finds what is wrong with it
                pass
            if not config.is_one_file:
                check_writable(output)
                return _Run(config, load_generator(config)).batch_in_folder(file, output)
            _check_new(output)
            return _Run(config, load_generator(config)).batch_in_one_file(file, output)
        pooled = [prompt for request in file or () for prompt in request.prompts]
    request = Request(id=(output.stem if output else "") or "adapter", prompts=(*config.prompts, *pooled))
    check_prompts(request.prompts)
    samples = tuple(read_examples(Path(config.tune))) if config.tune is not None else ()
    check_writable(ADAPTERS_FOLDER) if output is None else _check_new(output)
    outcome = _Run(config, load_generator(config), samples).single(request, output)
    if config.push_to_hub is None:
        return outcome
    message = f"Push an adapter generated from {counted(len(request.prompts), 'prompt')}"
    url = push_folder(
        outcome.path,
        config.push_to_hub,
        files=ADAPTER_FILES,
        private=config.private or None,
        commit_message=message,
    )
    return replace(outcome, commit_url=url)


def made_otherwise(path: Path) -> LoragenInferError:
    """Return the error about something that lies where a result of this run belongs."""
    return LoragenInferError(
        f"{path} exists already and was not made from the same prompts, model and options; choose another --output or "
        "remove it."
    )


def load_generator(config: GenerateConfig) -> "LoraGenerator":
    """Return the generator that ``config`` names, with its base model."""
    from loragen_infer.generator import LoraGenerator

    generator = LoraGenerator.from_pretrained(
        config.model,
        revision=config.revision,
        device=config.device,
        dtype=config.dtype,
        compile=config.compile,
        cache_dir=Path(config.cache_dir) if config.cache_dir else None,
        condition_model=config.condition_model,
    )
    if config.base_model is not None:
        generator.bundle = generator.bundle.with_base_model(config.base_model)
    return generator


def _check_new(output: Path) -> None:
    """Raise LoragenInferError if ``output`` cannot be written or is something that no run of this command made."""
    from loragen_infer.generation.writer import read_mark

    check_writable(output.parent)
    if not is_free(output) and read_mark(output) is None:
        raise LoragenInferError(f"{output} exists already; choose another --output or remove it.")


class _Run:
    """One call of the command, with its generator loaded."""

    def __init__(self, config: GenerateConfig, generator: "LoraGenerator", samples: tuple[Example, ...] = ()) -> None:
        self._config, self._generator, self._layout = config, generator, generator.bundle.layout
        self._samples = samples
        self._bundle_fingerprint, self._fingerprint = generator.bundle.fingerprint, generator.fingerprint

    def single(self, request: Request, output: Path | None) -> Outcome:
        """Make one adapter, in a place of its own where it is given none."""
        from loragen_infer.generation.writer import SUFFIXES

        fingerprint = self._fingerprint_of(request)
        if output is None:
            output = ADAPTERS_FOLDER / f"{fingerprint}{SUFFIXES[self._config.kind]}"
        if self._is_done(output, fingerprint):
            return self._outcome(output, 0, 1)
        adapter = self._generator.generate(request.prompts, scale=self._config.scale)
        num_steps = 0
        if self._samples:
            adapter, num_steps = self._tune(adapter)
        self._write(request, adapter, output, num_tune_steps=num_steps)
        return self._outcome(output, 1, 0)

    def _tune(self, adapter: "LoraAdapter") -> "tuple[LoraAdapter, int]":
        """Return the adapter tuned on the samples, and with how many steps."""
        from loragen_infer.adapters.tuning import TuneSettings, tune_many
        from loragen_infer.models.base_model import load_base_model

        config, base_model = self._config, self._generator.base_model
        if base_model is None:
            raise LoragenInferError("The generator does not know its language model; name it with --base-model.")
        model, tokenizer = load_base_model(base_model, device=config.device)
        settings = TuneSettings(
            num_steps=config.tune_steps, num_folds=config.tune_folds, learning_rate=config.tune_learning_rate
        )
        (tuned,) = tune_many(model, tokenizer, [adapter], [self._samples], settings)
        taken, samples = counted(tuned.num_steps, "step"), counted(len(self._samples), "sample")
        logger.info("Tuned with %s of at most %d on %s.", taken, settings.num_steps, samples)
        return tuned.adapter, tuned.num_steps

    def batch_in_folder(self, file: PromptFile, output: Path) -> Outcome:
        """Make an adapter per request under its id; what is there is skipped, and what is made is listed."""
        from lora_tokenizer.io.atomic import clear_leftovers

        from loragen_infer.generation.writer import SUFFIXES

        def place(request: Request) -> Path:
            return output / f"{request.id}{SUFFIXES[self._config.kind]}"

        def write_manifest() -> None:
            others = _rows_of_others(output / _MANIFEST, {request.id for request in file})
            rows = (self._row(request, {"path": place(request).name}) for request in file if place(request).exists())
            write_jsonl(output / _MANIFEST, itertools.chain(others, rows))

        taken = f"Another process is writing to {output}; wait for it to end, or choose another --output."
        with locked(output, taken):
            clear_leftovers(output)  # of runs that were killed
            done = [self._is_done(place(request), self._fingerprint_of(request)) for request in file]
            made, kept = 0, sum(done)
            todo = (request for request, is_done in zip(file, done, strict=True) if not is_done)
            try:
                with ProgressBar("Generating", total=len(done), unit="adapter", done=kept) as progress:
                    for request, adapter in self._generated(todo):
                        self._write(request, adapter, place(request))
                        made += 1
                        progress.advance()
            finally:  # also after Ctrl+C: what is finished is listed
                write_manifest()
        return self._outcome(output, made, kept)

    def batch_in_one_file(self, file: PromptFile, output: Path) -> Outcome:
        """Make the adapters of all requests and write them at the end, stacked tensor by tensor."""
        from loragen_infer.generation.writer import reserve, values_of, write_torch_file

        fingerprints = {request.id: self._fingerprint_of(request) for request in file}
        ids = list(fingerprints)
        fingerprint = hashlib.sha256("".join(f"{k}\0{v}\0" for k, v in fingerprints.items()).encode()).hexdigest()[:16]
        manifest = output.with_name(f"{output.stem}.{_MANIFEST}")
        rows = (self._row(request, {"index": index}) for index, request in enumerate(file))
        if self._is_done(output, fingerprint):
            if not manifest.is_file():  # the run that wrote the adapters was killed before it
                write_jsonl(manifest, rows)
            return self._outcome(output, 0, len(ids))
        kind, layout = self._config.kind, self._layout
        stacked = reserve(values_of(self._generator.mean_adapter(), kind, layout), len(ids))
        with ProgressBar("Generating", total=len(ids), unit="adapter") as progress:
            for index, (_, adapter) in enumerate(self._generated(file)):
                for name, tensor in values_of(adapter, kind, layout).items():
                    stacked[name][index] = tensor
                progress.advance()
        is_tokens = kind == "tokens"
        meaning = {"layout": layout.to_json()} if is_tokens else {"adapter_config": layout.config.to_peft()}
        write_torch_file({"ids": ids, **meaning, "tensors": stacked}, output, fingerprint)
        write_jsonl(manifest, rows)
        return self._outcome(output, len(ids), 0)

    def _fingerprint_of(self, request: Request) -> str:
        config = self._config
        settings = settings_of(
            kind=config.kind,
            scale=config.scale,
            base_model=self._generator.base_model,
            omit_prompts=config.omit_prompts,
        )
        if self._samples:
            settings += [str(config.tune_steps), str(config.tune_folds), repr(config.tune_learning_rate)]
            settings += [text for sample in self._samples for text in (sample.prompt, sample.response)]
        return request.fingerprint(self._fingerprint, settings)

    def _is_done(self, path: Path, fingerprint: str) -> bool:
        """Whether what the fingerprint stands for is there; raises LoragenInferError if something else is."""
        from loragen_infer.generation.writer import read_mark

        if is_free(path):
            return False
        if read_mark(path) != fingerprint:
            raise made_otherwise(path)
        return True

    def _write(self, request: Request, adapter: "LoraAdapter", path: Path, *, num_tune_steps: int = 0) -> None:
        from loragen_infer.generation.card import model_card
        from loragen_infer.generation.writer import write_in_format

        fingerprint = self._fingerprint_of(request)
        card = model_card(
            request,
            base_model=self._generator.base_model,
            generator_fingerprint=self._bundle_fingerprint,
            request_fingerprint=fingerprint,
            scale=self._config.scale,
            num_tuned_on=len(self._samples),
            num_tune_steps=num_tune_steps,
            omit_prompts=self._config.omit_prompts,
        )
        kind, layout = self._config.kind, self._layout
        try:
            write_in_format(adapter, path, kind, layout=layout, request_fingerprint=fingerprint, card=card)
        except LoragenInferError:
            # Another process may have put the same adapter there meanwhile.
            if not self._is_done(path, fingerprint):
                raise

    def _generated(self, requests: Iterable[Request]) -> "Iterator[tuple[Request, LoraAdapter]]":
        """Every request with its adapter, a batch at a time, and at the end one warning of what was cut off."""
        asked, answered = itertools.tee(requests)
        tasks, config = (request.prompts for request in asked), self._config
        with self._generator.encoder.one_truncation_warning():
            adapters = self._generator.generate_many(tasks, batch_size=config.batch_size, scale=config.scale)
            yield from zip(answered, adapters, strict=True)

    def _row(self, request: Request, place: dict[str, object]) -> dict[str, object]:
        """One line of a manifest."""
        return {
            "id": request.id,
            **place,
            "scale": self._config.scale,
            **({} if self._config.omit_prompts else {"prompts": list(request.prompts)}),
            "request": self._fingerprint_of(request),
            "generator": self._bundle_fingerprint,
            "base_model": self._generator.base_model,
        }

    def _outcome(self, path: Path, made: int, kept: int) -> Outcome:
        return Outcome(
            path=path,
            num_made=made,
            num_kept=kept,
            num_parameters=self._layout.num_values,
            base_model=self._generator.base_model,
        )


def _rows_of_others(manifest: Path, ids: set[str]) -> Iterator[dict[str, object]]:
    """The rows of an earlier manifest that are of none of ``ids``."""
    if manifest.is_file():
        with manifest.open("rb") as stream:
            yield from (row for _, row in iter_jsonl(stream, str(manifest)) if row.get("id") not in ids)
