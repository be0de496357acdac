"""Short tasks of tables, JSON, lines and grids."""

import json
import random
from collections.abc import Callable, Iterable

from results.short_tasks.templates import CITIES, COLORS, NAMES, THINGS, WEEKDAYS, Template, drawn, numbers, turned
from results.short_tasks.vocabulary import Pair, Task

__all__ = ["of_tables"]

_ITEMS = [*THINGS, *COLORS]


def of_tables(draw: random.Random) -> Iterable[Task]:
    yield from drawn(draw, [*_of_json(), *_of_rows(), *_of_lines()])


def _of_json() -> Iterable[Template]:
    yield (
        "json_value",
        ("Write the value of the key.", "{}\nValue:"),
        _json_value,
    )
    yield "json_keys", ("List the keys, with commas.", "{} Which keys does this object have?"), _json_keys
    yield (
        "json_from_lines",
        ("Write these lines as a JSON object with strings.\n{}", 'a: b becomes {"a": "b"}. Convert this:\n{}'),
        _json_from_lines,
    )
    yield (
        "json_to_lines",
        ("Write each entry on a line, as key: value.", '{"a": "b"} becomes a: b. Convert this, one entry a line: {}'),
        lambda draw: turned(_json_from_lines(draw)),
    )
    yield (
        "json_increment",
        ("Raise the count by one and write the whole JSON.", "{} Write this object with a count that is one higher."),
        _json_increment,
    )
    yield (
        "json_toggle",
        ("Switch true and false in the JSON.", "{}\nWrite the object with the opposite value."),
        _json_toggle,
    )
    yield (
        "json_list",
        ("Write the items as a JSON list of strings.", 'As x, y is ["x", "y"], write this as JSON: {}'),
        _json_list,
    )


def _record(draw: random.Random) -> dict[str, str]:
    record = {"name": draw.choice(NAMES), "city": draw.choice(CITIES), "color": draw.choice(COLORS)}
    return record | {"day": draw.choice(WEEKDAYS)}


def _json_value(draw: random.Random) -> Pair:
    record = _record(draw)
    key = draw.choice([*record])
    return f"{json.dumps(record)} Key: {key}", record[key]


def _json_keys(draw: random.Random) -> Pair:
    keys = draw.sample(THINGS, 3)
    return json.dumps(dict(zip(keys, numbers(draw, 3), strict=True))), ", ".join(keys)


def _json_from_lines(draw: random.Random) -> Pair:
    record = dict(draw.sample([*_record(draw).items()], 3))
    return "\n".join(f"{key}: {value}" for key, value in record.items()), json.dumps(record)


def _json_increment(draw: random.Random) -> Pair:
    thing, count = draw.choice(THINGS), draw.randint(1, 98)
    return json.dumps({"thing": thing, "count": count}), json.dumps({"thing": thing, "count": count + 1})


def _json_toggle(draw: random.Random) -> Pair:
    person, key = draw.choice(NAMES), draw.choice(["active", "ready", "paid", "open"])
    is_so = draw.random() < 0.5
    return json.dumps({"name": person, key: is_so}), json.dumps({"name": person, key: not is_so})


def _json_list(draw: random.Random) -> Pair:
    items = draw.sample(_ITEMS, 3)
    return ", ".join(items), json.dumps(items)


def _of_rows() -> Iterable[Template]:
    yield (
        "csv_to_json",
        ("Turn the CSV into one JSON object.\n{}", "The first line has the names. Write the row as JSON:\n{}"),
        _csv_to_json,
    )
    yield (
        "csv_column",
        ("List the names in the table, with commas.\n{}", "{}\nWrite the first column without its title, with commas."),
        _csv_column,
    )
    yield (
        "csv_sum",
        ("What is the sum of the points?\n{}", "{}\nAdd up the points and answer with the number."),
        _csv_sum,
    )
    yield (
        "csv_lookup",
        ("Answer from the table, with the number only.\n{}", "{} Look it up in the rows above."),
        _csv_lookup,
    )
    yield (
        "csv_best",
        ("Who has the most points?\n{}", "{}\nWrite the name of the winner of this table."),
        _csv_best,
    )


def _scores(draw: random.Random) -> dict[str, int]:
    return dict(zip(draw.sample(NAMES, 3), numbers(draw, 3, 30), strict=True))


def _csv(scores: dict[str, int]) -> str:
    return "\n".join(["name,points", *(f"{name},{points}" for name, points in scores.items())])


def _csv_to_json(draw: random.Random) -> Pair:
    record = dict(draw.sample([*_record(draw).items()], 3))
    return f"{','.join(record)}\n{','.join(record.values())}", json.dumps(record)


def _csv_column(draw: random.Random) -> Pair:
    scores = _scores(draw)
    return _csv(scores), ", ".join(scores)


def _csv_sum(draw: random.Random) -> Pair:
    scores = _scores(draw)
    return _csv(scores), str(sum(scores.values()))


def _csv_lookup(draw: random.Random) -> Pair:
    scores = _scores(draw)
    name = draw.choice([*scores])
    return f"{_csv(scores)}\nHow many points does {name} have?", str(scores[name])


def _csv_best(draw: random.Random) -> Pair:
    scores = _scores(draw)
    return _csv(scores), max(scores, key=lambda name: scores[name])


def _of_lines() -> Iterable[Template]:
    formats: list[tuple[str, tuple[str, ...], Callable[[list[str]], str]]] = [
        (
            "lines_bulleted",
            (
                "Make a list with a dash and a space before each item.",
                "{}\nWrite each item on a line that starts with -",
            ),
            lambda items: "\n".join(f"- {item}" for item in items),
        ),
        (
            "lines_numbered",
            ("Number the items, one a line, like 1. item", "Write as a numbered list (1. 2. 3.): {}"),
            lambda items: "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1)),
        ),
        (
            "lines_lettered",
            ("Write the items as options A) B) C), one a line.", "{}\nLabel these with A), B) and C) on three lines."),
            lambda items: "\n".join(f"{letter}) {item}" for letter, item in zip("ABC", items, strict=True)),
        ),
        (
            "lines_lengths",
            ("Write each word with its number of letters, like: cat 3", "{} For every word, a line with its length:"),
            lambda items: "\n".join(f"{item} {len(item)}" for item in items),
        ),
    ]
    for name, instructions, rule in formats:
        yield name, instructions, _three_items(rule)
    yield (
        "lines_to_commas",
        ("Write the list in one line, with commas.\n{}", "{}\nJoin these lines by commas, without dashes."),
        _unlisted,
    )


def _three_items(rule: Callable[[list[str]], str]) -> Callable[[random.Random], Pair]:
    def make(draw: random.Random) -> Pair:
        items = draw.sample(_ITEMS, 3)
        return ", ".join(items), rule(items)

    return make


def _unlisted(draw: random.Random) -> Pair:
    items = draw.sample(_ITEMS, 4)
    return "\n".join(f"- {item}" for item in items), ", ".join(items)
