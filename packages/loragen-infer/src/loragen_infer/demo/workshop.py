"""What the page does at a click, without the page: text in, an adapter and what is shown of it out."""

import math
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_tokenizer import read_adapter

from loragen_infer.bundle import GeneratorBundle
from loragen_infer.demo.language_model import LanguageModel
from loragen_infer.demo.loading import Loading
from loragen_infer.demo.nearest import NearTasks, TaskMap
from loragen_infer.demo.norms import delta_norms, draw_norms
from loragen_infer.errors import LoragenInferError
from loragen_infer.files import atomic_file
from loragen_infer.generator import LoraGenerator
from loragen_infer.store import AdapterStore

__all__ = ["KEPT_SECONDS", "MAX_STRENGTH", "Maker", "Shown", "Workshop", "prompts_of"]

MAX_STRENGTH = 2.0
KEPT_SECONDS = 3600
"""How long archives and pictures are there, which the page has copies of by then."""
_MAX_PROMPTS = 1000
_MAX_CHARACTERS = 200_000
_MAX_QUESTION_CHARACTERS = 20_000


@dataclass(frozen=True, kw_only=True)
class Maker:
    """What adapters are made with."""

    generator: LoraGenerator
    """What writes them."""
    store: AdapterStore
    """Where they are kept."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An adapter, and what the page shows of it."""

    id: str
    num_prompts: int
    num_parameters: int
    strength: float
    archive: Path
    """A zip of the PEFT folder."""
    near: NearTasks
    picture: Path
    """A PNG of the norms of its weight changes."""
    total_norm: float
    """Frobenius norm of all weight changes together."""


class Workshop:
    """Makes adapters with one generator and asks one language model, and waits for both where they are not there yet.

    Args:
        bundle: The generator without its encoder, which is known at once.
        maker: The generator with its encoder, and the store of what it makes.
        tasks: What the generator was trained on.
        language_model: What answers.
        workspace: A folder for the archives.
    """

    def __init__(
        self,
        bundle: GeneratorBundle,
        *,
        maker: Loading[Maker],
        tasks: TaskMap,
        language_model: LanguageModel,
        workspace: Path,
    ) -> None:
        self.bundle, self.tasks = bundle, tasks
        self._maker, self._language_model, self._workspace = maker, language_model, workspace

    @property
    def loads(self) -> tuple[Callable[[], None], ...]:
        """What is to be called once the page is up, in order: the last is for a page that makes adapters without it.

        The first raises LoragenInferError where the encoder cannot be loaded, or is not the one of the generator.
        """
        return self._load_maker, self._language_model.load

    def give_up(self) -> None:
        """End the waiting for what is not loaded."""
        self._maker.give_up()
        self._language_model.give_up()

    def _load_maker(self) -> None:
        self._maker.load()
        self._maker.result()

    @property
    def is_settled(self) -> bool:
        """Whether all is loaded that will be."""
        return self._maker.is_settled and self._language_model.is_settled

    @property
    def status(self) -> str:
        """What is being loaded, in words, or how the language model is."""
        return (self._language_model if self._maker.is_settled else self._maker).status

    def make(self, prompts: Sequence[str], strength: float) -> Shown:
        """Return the adapter for ``prompts``, which is made only once.

        Raises:
            LoragenInferError: The prompts or the strength are none that an adapter can be made of, it cannot be
                written, or the encoder cannot be loaded.
        """
        if not isinstance(strength, int | float) or not math.isfinite(strength) or abs(strength) > MAX_STRENGTH:
            raise LoragenInferError(f"The strength is {strength}, where a number up to {MAX_STRENGTH:g} belongs.")
        maker = self._maker.result()
        made = maker.store.get_or_create(prompts, scale=float(strength))
        adapter = read_adapter(made.path)
        norms = delta_norms(adapter)
        _clear_old(self._workspace)
        return Shown(
            id=made.id,
            num_prompts=len(prompts),
            num_parameters=adapter.num_parameters,
            strength=float(strength),
            archive=_zip_folder(made.path, self._workspace / f"{made.id}.zip"),
            near=self.tasks.nearest(prompts, maker.generator.encoder),
            picture=draw_norms(norms, self._workspace / f"{made.id}.png"),
            total_norm=norms.norms_ML.nan_to_num().norm().item(),
        )

    def ask(self, question: str, prompts: Sequence[str], strength: float) -> tuple[str, str]:
        """Return the answers of the base model and of the adapted one.

        Raises:
            LoragenInferError: There is no question, or no language model; or as :meth:`make`.
        """
        if not question.strip():
            raise LoragenInferError("There is no question; write one.")
        if len(question) > _MAX_QUESTION_CHARACTERS:
            raise LoragenInferError(f"The question is longer than {_MAX_QUESTION_CHARACTERS:,} characters; shorten it.")
        made = self._maker.result().store.get_or_create(prompts, scale=float(strength))
        return self._language_model.answers(question, read_adapter(made.path))


def prompts_of(text: str) -> tuple[str, ...]:
    """Return the prompts in ``text``, one per line; empty lines are none.

    Raises:
        LoragenInferError: There is none, or more than a page should be asked for.

    Example:
        >>> prompts_of("What is 17 + 25?\\n\\n  What is 3 + 88?\\n")
        ('What is 17 + 25?', 'What is 3 + 88?')
    """
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not prompts:
        raise LoragenInferError("There is no prompt; write at least one, each on its own line.")
    if len(prompts) > _MAX_PROMPTS or len(text) > _MAX_CHARACTERS:
        raise LoragenInferError(
            f"These are {len(prompts):,} prompts of {len(text):,} characters together, and the page takes "
            f"{_MAX_PROMPTS:,} of {_MAX_CHARACTERS:,}; give it fewer, or use loragen-infer generate."
        )
    return prompts


def _clear_old(workspace: Path) -> None:
    """Remove archives and pictures of long ago; the store has the adapters."""
    oldest = time.time() - KEPT_SECONDS
    for path in workspace.iterdir():
        if path.suffix in (".png", ".zip") and path.stat().st_mtime < oldest:
            path.unlink()


def _zip_folder(folder: Path, path: Path) -> Path:
    """Write the files of ``folder``, under its name, into the zip ``path``, whole or not at all."""
    with atomic_file(path) as part, zipfile.ZipFile(part, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path(folder.name) / file.relative_to(folder))
    return path
