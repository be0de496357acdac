"""Adapters by the fingerprint of their request: found on disk, or made once, however many threads and processes ask."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_tokenizer import LoraAdapter, LoraTokenizerError, read_adapter

from loragen_infer.adapters.merging import merge_adapters
from loragen_infer.encoder.base import check_prompts
from loragen_infer.errors import LoragenInferError
from loragen_infer.generation.card import merged_card, model_card
from loragen_infer.generation.prompt_file import Request, settings_of
from loragen_infer.generation.writer import write_peft_folder
from loragen_infer.generator import LoraGenerator, check_scale
from loragen_infer.store.shelf import Shelf, StoredAdapter, check_id

__all__ = ["AdapterStore"]

# Most adapters that are generated together, and held until they are written.
_BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What an adapter is made from."""

    id: str
    request: Request
    scale: float


class AdapterStore:
    """PEFT folders in ``folder`` under the fingerprints of their requests, as ``loragen-infer generate`` writes them.

    Threads and processes may share a folder. An adapter appears whole or not at all, and is made once: whoever asks for
    it meanwhile waits. Beyond ``max_adapters`` those that were used least recently are removed, but none that was tuned
    (with several threads or processes that make adapters, up to sixteen or a sixty-fourth more each may be there for a
    while).

    Args:
        folder: Where the adapters are; it is made with the first of them.
        generator: What makes them, and is left as it is meanwhile; without one the store only finds and merges.
        max_adapters: Most adapters that are kept; None: as many as whoever last set a number for the folder said, or
            10,000.

    Raises:
        LoragenInferError: By every method, in one sentence: the folder cannot be written, a prompt has no text, an id
            is none, or what is asked for needs a generator.

    Example:
        .. code-block:: python

            store = AdapterStore("adapters", LoraGenerator.from_pretrained("experiments/zoo_20260101_120000"))
            stored = store.get_or_create(["What is 17 + 25?", "What is 3 + 88?"])
            print(stored.id, stored.path)
    """

    def __init__(
        self, folder: str | Path, generator: LoraGenerator | None = None, *, max_adapters: int | None = None
    ) -> None:
        self.generator = generator
        self._shelf = Shelf(Path(folder), max_adapters=max_adapters)
        self._generating = threading.Lock()
        if generator is not None:  # both take a look at every weight
            self._fingerprint, self._bundle_fingerprint = generator.fingerprint, generator.bundle.fingerprint

    @property
    def folder(self) -> Path:
        """Where the adapters are."""
        return self._shelf.folder

    def __len__(self) -> int:
        return sum(1 for _ in self._shelf)

    def __iter__(self) -> Iterator[StoredAdapter]:
        """Yield the adapters that are there, by id."""
        for adapter_id in self._shelf:
            yield StoredAdapter(id=adapter_id, path=self.folder / adapter_id, is_new=False, seconds=0.0)

    def id_of(self, prompts: Sequence[str], *, scale: float = 1.0) -> str:
        """Return the id that the adapter for ``prompts`` has, whether it is there or not."""
        return self._recipe(prompts, scale).id

    def get_or_create(self, prompts: Sequence[str], *, scale: float = 1.0) -> StoredAdapter:
        """Return the adapter for the one task that ``prompts`` describe; see :meth:`LoraGenerator.generate`."""
        return self.get_or_create_many([(prompts, scale)])[0]

    def get_or_create_many(self, requests: Sequence[tuple[Sequence[str], float]]) -> list[StoredAdapter]:
        """Return the adapters for pairs of prompts and scale, in order; those that are missing are made together.

        One that cannot be made is an error for all; what is finished by then is kept.
        """
        start = time.perf_counter()
        recipes = [self._recipe(prompts, scale) for prompts, scale in requests]
        asked = {recipe.id for recipe in recipes}
        self._shelf.check_number(len(asked))  # also those that are there must not go
        missing = list({recipe.id: recipe for recipe in recipes if self._shelf.use(recipe.id) is None}.values())
        made: set[str] = set()
        # A batch at a time, since each adapter that is being made is an open file.
        for begin in range(0, len(missing), _BATCH_SIZE):
            batch = missing[begin : begin + _BATCH_SIZE]
            with self._shelf.making([recipe.id for recipe in batch]):
                if todo := [recipe for recipe in batch if self._shelf.use(recipe.id) is None]:
                    self._shelf.make_room(len(todo), keep=asked)
                    for recipe, adapter in zip(todo, self._generated(todo), strict=True):
                        self._write_generated(recipe, adapter)
                        made.add(recipe.id)
        seconds = time.perf_counter() - start
        answer = []
        for recipe in recipes:
            path = self.folder / recipe.id
            answer.append(StoredAdapter(id=recipe.id, path=path, is_new=recipe.id in made, seconds=seconds))
            made.discard(recipe.id)  # of the same request twice the first made it
        return answer

    def find(self, adapter_id: str) -> StoredAdapter | None:
        """Return the adapter of that id if it is there; an id that is not sixteen hexadecimal digits is refused."""
        start = time.perf_counter()
        path = self._shelf.use(adapter_id)
        if path is None:
            return None
        return StoredAdapter(id=adapter_id, path=path, is_new=False, seconds=time.perf_counter() - start)

    def register(self, prompts: Sequence[str], *, scale: float = 1.0) -> str:
        """Keep ``prompts`` for an adapter that :meth:`find_or_create` makes at its first use, and return its id."""
        recipe = self._recipe(prompts, scale)
        self._shelf.keep_request(recipe.id, {"prompts": list(recipe.request.prompts), "scale": recipe.scale})
        return recipe.id

    def is_registered(self, adapter_id: str) -> bool:
        """Return whether prompts are kept for the adapter of that id, whether it is there or not."""
        return self._shelf.read_request(adapter_id) is not None

    def find_or_create(self, adapter_id: str) -> StoredAdapter | None:
        """Return the adapter of that id, made now if it is not there and its prompts are registered; otherwise None."""
        found = self.find(adapter_id)
        if found is not None:
            return found
        request = self._shelf.read_request(adapter_id)
        if request is None:
            return None
        prompts, scale = request.get("prompts"), request.get("scale")
        is_whole = isinstance(prompts, list) and all(isinstance(prompt, str) for prompt in prompts)
        if not is_whole or not isinstance(scale, int | float) or self.id_of(prompts or (), scale=scale) != adapter_id:
            raise LoragenInferError(
                f"The prompts of {adapter_id} were registered with another generator than the one of the store "
                f"{self.folder}; register them again."
            )
        return self.get_or_create(prompts or (), scale=scale)

    def merge(self, ids: Sequence[str], weights: Sequence[float]) -> StoredAdapter:
        """Return the exact weighted sum of adapters that are there; see :func:`merge_adapters`."""
        start = time.perf_counter()
        content = json.dumps(["merge", [check_id(adapter_id) for adapter_id in ids], [float(w) for w in weights]])
        merged_id = hashlib.sha256(content.encode()).hexdigest()[:16]
        place, is_new = self._shelf.use(merged_id), False
        if place is None:
            with self._shelf.making([merged_id]):
                place = self._shelf.use(merged_id)
                if place is None:
                    adapter = merge_adapters([self._read(adapter_id) for adapter_id in ids], weights)
                    base_model = adapter.config.base_model_name_or_path
                    card = merged_card(ids, weights, base_model=base_model, fingerprint=merged_id)
                    self._shelf.make_room(1)
                    place, is_new = self._write(merged_id, adapter, card), True
        return StoredAdapter(id=merged_id, path=place, is_new=is_new, seconds=time.perf_counter() - start)

    def _recipe(self, prompts: Sequence[str], scale: float) -> _Recipe:
        generator = self._checked_generator()
        if isinstance(prompts, str):
            raise LoragenInferError(f"The prompts of a task are the text {prompts[:40]!r}; give a list of texts.")
        check_prompts(prompts)
        check_scale(scale)
        request = Request(id="adapter", prompts=tuple(prompts))
        settings = settings_of(kind="peft", scale=scale, base_model=generator.base_model, omit_prompts=False)
        return _Recipe(id=request.fingerprint(self._fingerprint, settings), request=request, scale=float(scale))

    def _checked_generator(self) -> LoraGenerator:
        if self.generator is None:
            raise LoragenInferError(f"The store {self.folder} has no generator, so it makes no adapters; give it one.")
        return self.generator

    def _generated(self, recipes: Sequence[_Recipe]) -> list[LoraAdapter]:
        """The adapters of one batch; one thread at a time makes some, while others write theirs."""
        generator = self._checked_generator()
        tasks, scales = [recipe.request.prompts for recipe in recipes], [recipe.scale for recipe in recipes]
        with self._generating, generator.encoder.one_truncation_warning():
            return list(generator.generate_many(tasks, batch_size=len(tasks), scale=scales))

    def _write_generated(self, recipe: _Recipe, adapter: LoraAdapter) -> None:
        card = model_card(
            recipe.request,
            base_model=self._checked_generator().base_model,
            generator_fingerprint=self._bundle_fingerprint,
            request_fingerprint=recipe.id,
            scale=recipe.scale,
            omit_prompts=False,
        )
        self._write(recipe.id, adapter, card)

    def _write(self, adapter_id: str, adapter: LoraAdapter, card: str) -> Path:
        path = self.folder / adapter_id
        try:
            write_peft_folder(adapter, path, card=card)
        except LoragenInferError:
            # ``generate`` takes no lock of the store and may have put the same adapter there meanwhile.
            if self._shelf.use(adapter_id) is None:
                raise
        return path

    def _read(self, adapter_id: str) -> LoraAdapter:
        path = self._shelf.use(adapter_id)
        if path is None:
            raise LoragenInferError(f"There is no adapter {adapter_id} in the store {self.folder}; make it first.")
        try:
            return read_adapter(path)
        except LoraTokenizerError as error:
            raise LoragenInferError(str(error)) from error
