"""Short tasks of choosing among options, of order, and of rules and what follows from them."""

import random
from collections.abc import Iterable

from results.short_tasks.templates import COLORS, KINDS, NAMES, THINGS, Template, drawn, numbers, true
from results.short_tasks.vocabulary import Pair, Task, yes

__all__ = ["of_logic"]

_TURNS = {"right": 1, "left": -1, "around": 2}
_DIRECTIONS = ["north", "east", "south", "west"]


def of_logic(draw: random.Random) -> Iterable[Task]:
    yield from drawn(draw, [*_of_options(), *_of_order(), *_of_rules(), *_of_states()])


def _of_options() -> Iterable[Template]:
    yield (
        "choose_letter",
        ("Answer with the letter of the right option.", "{}\nAnswer with A, B, C or D only."),
        _lettered_choice,
    )
    yield (
        "choose_number",
        ("Answer with the number of the right option.", "{}\nWrite 1, 2 or 3."),
        _numbered_choice,
    )
    yield (
        "choose_sum",
        ("Pick the letter of the correct result.", "{} Reply with one letter."),
        _sum_choice,
    )
    yield (
        "odd_one_out",
        ("Which word is of another kind than the others?", "{}\nName the one that does not belong."),
        _odd_one,
    )


def _lettered_choice(draw: random.Random) -> Pair:
    kind, options, place = _options(draw, 4)
    listed = " ".join(f"{letter}) {option}" for letter, option in zip("ABCD", options, strict=True))
    return f"Which is {_with_article(kind)}? {listed}", "ABCD"[place]


def _numbered_choice(draw: random.Random) -> Pair:
    kind, options, place = _options(draw, 3)
    listed = "\n".join(f"{number}. {option}" for number, option in enumerate(options, start=1))
    return f"Which is {_with_article(kind)}?\n{listed}", str(place + 1)


def _with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _options(draw: random.Random, count: int) -> tuple[str, list[str], int]:
    """Return a kind, one thing of it among things of other kinds, and its place there."""
    kinds = draw.sample([*KINDS], count)
    options = [draw.choice(KINDS[kind]) for kind in kinds]
    place = draw.randrange(count)
    return kinds[place], options, place


def _sum_choice(draw: random.Random) -> Pair:
    first, second = numbers(draw, 2, 50)
    results = [first + second + error for error in draw.sample([-10, -2, -1, 1, 2, 10], 2)] + [first + second]
    draw.shuffle(results)
    listed = ", ".join(f"{letter}) {result}" for letter, result in zip("ABC", results, strict=True))
    return f"{first} + {second} = ? {listed}", "ABC"[results.index(first + second)]


def _odd_one(draw: random.Random) -> Pair:
    kind, other = draw.sample([*KINDS], 2)
    odd = draw.choice(KINDS[other])
    words = [*draw.sample(KINDS[kind], 3), odd]
    draw.shuffle(words)
    return ", ".join(words), odd


def _of_order() -> Iterable[Template]:
    yield (
        "order_most",
        ("Answer with one name.", "{}\nName:"),
        _extreme,
    )
    yield (
        "order_list",
        ("List all from first to last in the race, with commas.", "{} Write the three names in order of arrival."),
        _arrival,
    )
    yield (
        "order_between",
        ("Who stands in the middle?", "{}\nWrite the name of the one between the other two."),
        _middle,
    )


def _extreme(draw: random.Random) -> Pair:
    first, second, third = draw.sample(NAMES, 3)
    facts = [f"{first} is older than {second}.", f"{second} is older than {third}."]
    draw.shuffle(facts)
    question, answer = draw.choice([("oldest", first), ("youngest", third)])
    return f"{' '.join(facts)} Who is the {question}?", answer


def _arrival(draw: random.Random) -> Pair:
    first, second, third = draw.sample(NAMES, 3)
    facts = [f"{first} arrived before {second}.", f"{third} arrived after {second}."]
    draw.shuffle(facts)
    return " ".join(facts), f"{first}, {second}, {third}"


def _middle(draw: random.Random) -> Pair:
    left, middle, right = draw.sample(NAMES, 3)
    facts = [f"{left} stands left of {middle}.", f"{right} stands right of {middle}."]
    draw.shuffle(facts)
    return " ".join(facts), middle


def _of_rules() -> Iterable[Template]:
    yield (
        "rule_fee",
        ("Apply the rule and answer with the price.", "{} Which price applies? Write it like $3."),
        _fee,
    )
    yield "rule_follows", ("Answer yes, no or unknown.", "{}\nYes, no or unknown?"), _follows
    yield (
        "rule_boolean",
        ("Work out the value: true or false.", "{}\nIs this true or false?", "What is the truth value of {}?"),
        _boolean,
    )
    yield (
        "rule_password",
        (
            "Has this password a digit and 8 characters or more? Say yes or no.",
            "{}\nA digit in it, and 8 characters or more? yes or no",
        ),
        _password,
    )
    yield (
        "rule_labels",
        ("Replace each letter by its word: a is sun, b is sea, c is sky.", "With a = sun, b = sea, c = sky, write {}."),
        _labels,
    )


def _fee(draw: random.Random) -> Pair:
    age, child, adult = draw.randint(4, 60), *sorted(numbers(draw, 2, 30))
    text = f"Visitors below 16 pay ${child}, all others ${adult}. {draw.choice(NAMES)} is {age} years old."
    return text, f"${child if age < 16 else adult}"


def _follows(draw: random.Random) -> Pair:
    first, second, other = draw.sample(THINGS, 3)
    name, color = draw.choice(NAMES), draw.choice(COLORS)
    told = f"{name} bought a {first} and a {color} {second}, but no {other}."
    asked = {first: "yes", second: "yes", other: "no"}
    thing = draw.choice([*asked])
    unknown = (f"{told} Was the {first} expensive?", "unknown")
    return draw.choice([(f"{told} Did {name} buy a {thing}?", asked[thing])] * 2 + [unknown])


def _boolean(draw: random.Random) -> Pair:
    a, b, c = (draw.random() < 0.5 for _ in range(3))
    forms = {
        f"{true(a)} and {true(b)}": a and b,
        f"{true(a)} or {true(b)}": a or b,
        f"not ({true(a)} and {true(b)})": not (a and b),
        f"({true(a)} or {true(b)}) and {true(c)}": (a or b) and c,
        f"{true(a)} or ({true(b)} and not {true(c)})": a or (b and not c),
        f"(not {true(a)}) or (not {true(b)} and {true(c)})": (not a) or (not b and c),
        f"not ({true(a)} or {true(b)} or {true(c)})": not (a or b or c),
        f"({true(a)} and {true(b)}) or ({true(b)} and {true(c)})": (a and b) or (b and c),
        f"not {true(a)} and not {true(b)} and {true(c)}": not a and not b and c,
        f"({true(a)} or not {true(b)}) and not {true(c)}": (a or not b) and not c,
    }
    form = draw.choice([*forms])
    return form, true(forms[form])


def _password(draw: random.Random) -> Pair:
    ending = draw.choice(["", "-", draw.choice(COLORS)]) + draw.choice(["", str(draw.randint(1, 999))])
    word = draw.choice(THINGS) + ending
    return word, yes(len(word) >= 8 and any(sign.isdigit() for sign in word))


def _labels(draw: random.Random) -> Pair:
    words = {"a": "sun", "b": "sea", "c": "sky"}
    letters = draw.choices([*words], k=draw.randint(3, 5))
    return " ".join(letters), " ".join(words[letter] for letter in letters)


def _of_states() -> Iterable[Template]:
    yield (
        "state_direction",
        ("Which way does the person look in the end?", "{} Answer with north, east, south or west."),
        _direction,
    )
    yield (
        "state_place",
        ("Where is it now? Answer with the place only.", "{}\nWhich place is it in at the end?"),
        _moved,
    )
    yield (
        "state_switch",
        ("Is it on or off in the end?", "{} Answer on or off."),
        _switched,
    )
    yield (
        "state_counter",
        ("The counter starts at 0. What does it show at last?", "From 0 on: {}. What is the final value?"),
        _counter,
    )


def _direction(draw: random.Random) -> Pair:
    start, turns = draw.randrange(4), draw.choices([*_TURNS], k=draw.randint(1, 3))
    end = (start + sum(_TURNS[turn] for turn in turns)) % 4
    steps = ", then ".join(f"turns {turn}" for turn in turns)
    return f"{draw.choice(NAMES)} looks {_DIRECTIONS[start]} and {steps}.", _DIRECTIONS[end]


def _moved(draw: random.Random) -> Pair:
    first, second = draw.sample(["kitchen", "garden", "garage", "cellar", "attic", "hall", "office"], 2)
    thing, name, other = draw.choice(THINGS), *draw.sample(NAMES, 2)
    text = f"{name} leaves the {thing} in the {first}. {other} takes it to the {second}."
    if draw.random() < 0.5:
        return text, second
    return f"{text} Then {name} brings it back.", first


def _switched(draw: random.Random) -> Pair:
    is_on, thing = draw.random() < 0.5, draw.choice(["lamp", "radio", "heater", "fan", "screen"])
    people = draw.sample(NAMES, draw.randint(1, 3))
    presses = " ".join(f"{name} presses the switch." for name in people)
    ends_on = is_on != (len(people) % 2 == 1)
    return f"The {thing} is {'on' if is_on else 'off'}. {presses}", "on" if ends_on else "off"


def _counter(draw: random.Random) -> Pair:
    steps = [draw.choice([1, 2, 3, 5, 10]) * draw.choice([1, 1, -1]) for _ in range(draw.randint(3, 5))]
    return ", ".join(f"{'add' if step > 0 else 'subtract'} {abs(step)}" for step in steps), str(sum(steps))
