"""Short tasks of lists of numbers."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise

from results.short_tasks.templates import Template, drawn, numbers, true
from results.short_tasks.vocabulary import Pair, Task, yes

__all__ = ["of_number_lists"]


def of_number_lists(draw: random.Random) -> Iterable[Task]:
    rules = [*_of_one_answer(), *_of_order(), *_of_selection(), *_of_arithmetic()]
    yield from drawn(draw, [(name, instructions, _by_rule(rule)) for name, instructions, rule in rules])
    yield from drawn(draw, _of_two_inputs())


_Rule = tuple[str, tuple[str, ...], Callable[[list[int]], object]]
"""A name, ways to say what is wanted, and the answer for a list of numbers."""


def _by_rule(rule: Callable[[list[int]], object]) -> Callable[[random.Random], Pair]:
    def make(draw: random.Random) -> Pair:
        items = numbers(draw, draw.randint(4, 6), 40)
        return json.dumps(items), str(rule(items))

    return make


def _of_one_answer() -> Iterable[_Rule]:
    yield "numbers_total", ("Add up the list.", "{}\nTotal of this list:", "What do all of {} come to?"), sum
    yield (
        "numbers_spread",
        ("How far apart are the largest and the smallest item?", "Maximum minus minimum of {} is what?"),
        lambda items: max(items) - min(items),
    )
    yield (
        "numbers_place_of_largest",
        ("At which position is the largest item? Count from 1.", "{}\nGive the position of the maximum, from 1 on."),
        lambda items: items.index(max(items)) + 1,
    )
    yield (
        "numbers_num_even",
        ("How many of the items are even?", "{} Count the even numbers here.", "Number of even items in {}:"),
        lambda items: sum(item % 2 == 0 for item in items),
    )
    yield (
        "numbers_length_and_sum",
        (
            "Give the number of items and their sum, like: 3 items, sum 12",
            "{} Answer in the form: N items, sum S",
        ),
        lambda items: f"{len(items)} items, sum {sum(items)}",
    )


def _of_order() -> Iterable[_Rule]:
    yield (
        "numbers_rising",
        ("Order the items from small to large, as a list in brackets.", "{} Write this list in rising order."),
        lambda items: json.dumps(sorted(items)),
    )
    yield (
        "numbers_falling",
        ("Order the items from large to small, separated by commas.", "{}\nFalling order, with commas, no brackets:"),
        lambda items: _with_commas(sorted(items, reverse=True)),
    )
    yield (
        "numbers_ends_swapped",
        ("Swap the first and the last item.", "{} Exchange both ends of this list."),
        lambda items: json.dumps([items[-1], *items[1:-1], items[0]]),
    )
    yield (
        "numbers_moved_left",
        ("Move the first item to the end.", "[1, 2, 3] becomes [2, 3, 1]. What does {} become?"),
        lambda items: json.dumps([*items[1:], items[0]]),
    )
    yield (
        "numbers_one_per_line",
        ("Write one item a line.", "{}\nPut each number on a line of its own."),
        lambda items: "\n".join(map(str, items)),
    )


def _with_commas(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def _of_selection() -> Iterable[_Rule]:
    yield (
        "numbers_every_second",
        ("Keep every second item, starting with the first.", "[1, 2, 3, 4, 5] becomes [1, 3, 5]. And {}?"),
        lambda items: json.dumps(items[::2]),
    )
    yield (
        "numbers_even_and_odd",
        (
            "Write the even items, then the odd ones, like: even 2 4, odd none",
            "{} Group as: even ..., odd ... (or none)",
        ),
        lambda items: f"even {_matching(items, 0)}, odd {_matching(items, 1)}",
    )


def _matching(items: list[int], remainder: int) -> str:
    return " ".join(str(item) for item in items if item % 2 == remainder) or "none"


def _of_arithmetic() -> Iterable[_Rule]:
    yield (
        "numbers_plus_one",
        ("Add 1 to every item.", "{} Raise each item of this list by one.", "[4, 7] becomes [5, 8]. And {}?"),
        lambda items: json.dumps([item + 1 for item in items]),
    )
    yield (
        "numbers_running_total",
        ("Write the running totals.", "[1, 2, 4] becomes [1, 3, 7]. What does {} become?"),
        lambda items: json.dumps([*accumulate(items)]),
    )
    yield (
        "numbers_steps",
        ("Write the difference of each item to the one before, with commas.", "{} List the steps, such as +2, -3."),
        lambda items: _with_commas(f"{after - before:+}" for before, after in pairwise(items)),
    )
    yield (
        "numbers_odd_even_labels",
        ("Label each item as odd or even, with commas.", "[3, 8] becomes odd, even. What does {} become?"),
        lambda items: _with_commas("odd" if item % 2 else "even" for item in items),
    )
    yield (
        "numbers_as_sum",
        ("Write the addition with its result, like 1 + 2 + 3 = 6.", "{} Write out the sum of these as an equation."),
        lambda items: f"{' + '.join(map(str, items))} = {sum(items)}",
    )


def _of_two_inputs() -> Iterable[Template]:
    yield (
        "numbers_contains",
        ("Is the number in the list? Say yes or no.", "Answer yes or no: is {}?"),
        _contains,
    )
    yield (
        "numbers_is_sorted",
        ("Does each item exceed the one before? Say true or false.", "{}\nIs this list rising? Answer true or false."),
        _rising,
    )
    yield (
        "numbers_most_frequent",
        ("Which number is there most often?", "{}\nWrite the most frequent item only."),
        _most_frequent,
    )
    yield (
        "numbers_no_repeats",
        ("Keep each number once, where it comes first.", "{} Remove later repeats from the list."),
        _without_repeats,
    )
    yield (
        "numbers_pairwise_sums",
        ("Add the two lists item by item.", "[1, 2] and [5, 9] give [6, 11]. What do {} give?"),
        _pairwise,
    )
    yield (
        "numbers_missing_one",
        ("Which number of the second list is not in the first?", "{} Which number was added in the second list?"),
        _added,
    )


def _contains(draw: random.Random) -> Pair:
    items = numbers(draw, 6, 40)
    wanted = draw.choice([draw.choice(items), draw.randint(1, 40)])
    return f"{wanted} in {json.dumps(items)}", yes(wanted in items)


def _rising(draw: random.Random) -> Pair:
    items = numbers(draw, 5, 40)
    if draw.random() < 0.5:
        items.sort()
    return json.dumps(items), true(items == sorted(items))


def _most_frequent(draw: random.Random) -> Pair:
    first, *others = numbers(draw, 4, 30)
    items = [first, first, first, *others, others[0]]
    draw.shuffle(items)
    return json.dumps(items), str(Counter(items).most_common(1)[0][0])


def _without_repeats(draw: random.Random) -> Pair:
    items = draw.choices(numbers(draw, 4, 30), k=7)
    return json.dumps(items), json.dumps([*dict.fromkeys(items)])


def _pairwise(draw: random.Random) -> Pair:
    first, second = numbers(draw, 3, 30), numbers(draw, 3, 30)
    sums = [one + other for one, other in zip(first, second, strict=True)]
    return f"{json.dumps(first)} and {json.dumps(second)}", json.dumps(sums)


def _added(draw: random.Random) -> Pair:
    items = numbers(draw, 5)
    before = items[:-1]
    draw.shuffle(items)
    return f"{json.dumps(before)} and {json.dumps(items)}", str(next(item for item in items if item not in before))
