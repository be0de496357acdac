"""Makes short tasks of words, numbers, lists, sentences and codes, from templates and what a few small packages know.

Those that are trained on have samples and no adapters: a generator learns from them through the language model. Nothing
is downloaded, and the same versions of the packages give the same samples.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from loragen_infer.samples import Example

from results.short_tasks.changes import of_changes
from results.short_tasks.classification import of_classes
from results.short_tasks.codes import of_codes
from results.short_tasks.extraction import of_extraction
from results.short_tasks.grids import of_grids
from results.short_tasks.language import of_grammar, of_lists, of_words
from results.short_tasks.logic import of_logic
from results.short_tasks.names import of_kinds, of_names
from results.short_tasks.notation import of_notation
from results.short_tasks.numbers import of_dates, of_numbers, of_two_numbers, of_units
from results.short_tasks.patterns import of_patterns
from results.short_tasks.programs import of_programs
from results.short_tasks.reasoning import of_stories
from results.short_tasks.rewriting import of_rewriting
from results.short_tasks.structures import of_number_lists
from results.short_tasks.tables import of_tables
from results.short_tasks.texts import of_texts
from results.short_tasks.translations import of_translations
from results.short_tasks.vocabulary import Pair

__all__ = ["ShortTask", "short_tasks"]

_PLACE = "{}"
_MAKERS = [
    of_words,
    of_lists,
    of_grammar,
    of_numbers,
    of_two_numbers,
    of_dates,
    of_units,
    of_names,
    of_kinds,
    of_extraction,
    of_rewriting,
    of_changes,
    of_number_lists,
    of_tables,
    of_grids,
    of_stories,
    of_logic,
    of_patterns,
    of_classes,
    of_codes,
    of_programs,
    of_notation,
    of_translations,
    of_texts,
]


@dataclass(frozen=True, kw_only=True)
class ShortTask:
    """A task that one sentence describes."""

    name: str
    instructions: tuple[str, ...]
    """Ways to say what is wanted, of which each sample has one: its input is in place of ``{}``, else behind it."""
    pairs: Sequence[Pair]
    """Inputs and responses."""

    def samples(self, num_samples: int) -> list[Example]:
        """Return at most so many samples of different inputs, the same ones at every call."""
        draw = random.Random(self.name)
        pairs = list({given: (given, wanted) for given, wanted in self.pairs if given and wanted}.values())
        chosen = draw.sample(pairs, min(num_samples, len(pairs)))
        return [
            Example(prompt=_prompt(draw.choice(self.instructions), given), response=wanted) for given, wanted in chosen
        ]


def _prompt(instruction: str, given: str) -> str:
    """Put an input at the place that an instruction has for it, else behind it."""
    return instruction.replace(_PLACE, given) if _PLACE in instruction else f"{instruction} {given}"


def short_tasks(*, at_least: int = 60) -> list[ShortTask]:
    """Return all tasks with so many samples, by name."""
    tasks = [
        ShortTask(name=f"short_{name}", instructions=instructions, pairs=[*pairs])
        for make in _MAKERS
        for name, instructions, pairs in make(random.Random(make.__name__))
    ]
    return sorted((task for task in tasks if len(task.samples(at_least)) == at_least), key=lambda task: task.name)
