"""Short tasks of going on with patterns, of analogies and of sets."""

import random
from collections.abc import Iterable

from lemminflect import getInflection

from results.short_tasks.templates import CITIES, COLORS, KINDS, THINGS, Template, drawn
from results.short_tasks.vocabulary import Pair, Task, yes

__all__ = ["of_patterns"]

_ANALOGIES = [
    "walk",
    "sing",
    "write",
    "speak",
    "drive",
    "jump",
    "eat",
    "swim",
    "bring",
    "think",
    "open",
    "give",
    "take",
]


def of_patterns(draw: random.Random) -> Iterable[Task]:
    yield from drawn(draw, [*_of_patterns(), *_of_sets()])


def _of_patterns() -> Iterable[Template]:
    yield (
        "pattern_numbers",
        ("Continue with the next number.", "{}\nThe steps are equal. Which number follows?"),
        _progression,
    )
    yield (
        "pattern_gap",
        ("Which number belongs at the question mark? The steps are equal.", "Fill the gap in {}."),
        _gap,
    )
    yield (
        "pattern_colors",
        ("The pattern repeats. Which color is next?", "{}, ... Continue this pattern with one word."),
        _repeating,
    )
    yield (
        "analogy_past",
        ("Complete the analogy with one word.", "{}\nWrite the word that the question mark stands for."),
        _analogy,
    )
    yield (
        "analogy_kind",
        ("Complete it with the kind of thing.", "{} Fill in the last word."),
        _analogy_of_kinds,
    )


def _progression(draw: random.Random) -> Pair:
    start, step = draw.randint(1, 30), draw.choice([2, 3, 4, 5, 7, 10, -1, -2])
    items = [start + step * place + 10 for place in range(5)]
    return ", ".join(map(str, items[:4])), str(items[4])


def _gap(draw: random.Random) -> Pair:
    start, step, gap = draw.randint(1, 40), draw.randint(2, 12), draw.randint(1, 3)
    items = [str(start + step * place) for place in range(5)]
    return ", ".join("?" if place == gap else item for place, item in enumerate(items)), items[gap]


def _repeating(draw: random.Random) -> Pair:
    unit = draw.sample(COLORS, draw.randint(2, 3))
    shown = draw.randint(len(unit) * 2, len(unit) * 3)
    colors = (unit * 4)[: shown + 1]
    return ", ".join(colors[:-1]), colors[-1]


def _analogy(draw: random.Random) -> Pair:
    first, second = draw.sample(_ANALOGIES, 2)
    past = {verb: str(getInflection(verb, "VBD")[0]) for verb in (first, second)}
    return f"{first} : {past[first]} = {second} : ?", past[second]


def _analogy_of_kinds(draw: random.Random) -> Pair:
    first, second = draw.sample([*KINDS], 2)
    return f"{draw.choice(KINDS[first])} is to {first} as {draw.choice(KINDS[second])} is to ...", second


def _of_sets() -> Iterable[Template]:
    yield (
        "sets_common",
        ("Which items are in both sets? Keep the order of the first.", "Common items of {}, in the first set's order:"),
        lambda draw: _sets(draw, "common"),
    )
    yield (
        "sets_only_first",
        ("What is in the first set only? Keep the order.", "{}\nRemove from the first set what the second has."),
        lambda draw: _sets(draw, "only first"),
    )
    yield (
        "sets_subset",
        ("Is all of the first set in the second? Say yes or no.", "{} Is the first a subset of the second: yes or no?"),
        _subset,
    )


def _sets(draw: random.Random, wanted: str) -> Pair:
    items = draw.sample([*THINGS, *CITIES], 6)
    common = items[:2]
    first, second = [*common, *items[2:4]], [*common, *items[4:]]
    draw.shuffle(first)
    draw.shuffle(second)
    answer = [item for item in first if (item in second) == (wanted == "common")]
    return f"{_set(first)} and {_set(second)}", _set(answer)


def _subset(draw: random.Random) -> Pair:
    second = draw.sample(THINGS, 4)
    first = draw.sample(second, 2)
    if draw.random() < 0.5:
        first[draw.randrange(2)] = draw.choice([thing for thing in THINGS if thing not in second])
    return f"{_set(first)} and {_set(second)}", yes(all(item in second for item in first))


def _set(items: list[str]) -> str:
    return f"{{{', '.join(items)}}}"
