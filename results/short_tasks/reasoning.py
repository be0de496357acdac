"""Short tasks of small sums in everyday stories, of formulas, and of time."""

import random
from collections.abc import Iterable

from results.short_tasks.templates import NAMES, THINGS, WEEKDAYS, Template, clock, drawn, true
from results.short_tasks.vocabulary import Pair, Task, yes

__all__ = ["of_stories"]


def of_stories(draw: random.Random) -> Iterable[Task]:
    yield from drawn(draw, [*_of_amounts(), *_of_money(), *_of_time(), *_of_formulas()])


def _of_amounts() -> Iterable[Template]:
    yield "story_left_over", ("Solve this and answer with the number only.", "{}\nNumber:"), _left_over
    yield (
        "story_share",
        ("How much does each one get? Answer with a number.", "{} How many are there for each?"),
        _shared,
    )
    yield (
        "story_steps",
        (
            "Show both steps and the result, like: 2 x 3 = 6; 6 - 1 = 5; answer 5",
            "{} Answer in the form: A x B = C; C - D = E; answer E",
        ),
        _in_steps,
    )
    yield (
        "story_equation",
        ("Write the calculation with its result, such as 2 + 3 = 5.", "{}\nAnswer with an equation."),
        _as_equation,
    )
    yield (
        "story_sentence",
        ("Answer in a full sentence, like: Eva has 7 hats.", "{} Say how many there are now, in a full sentence."),
        _in_a_sentence,
    )


def _left_over(draw: random.Random) -> Pair:
    count, given = draw.randint(20, 60), draw.randint(2, 19)
    name, other = draw.sample(NAMES, 2)
    thing = draw.choice(THINGS)
    return f"{name} has {count} {thing}s and gives {given} to {other}. How many are left?", str(count - given)


def _shared(draw: random.Random) -> Pair:
    people, each = draw.randint(2, 9), draw.randint(2, 12)
    return f"{people} friends share {people * each} {draw.choice(THINGS)}s equally.", str(each)


def _in_steps(draw: random.Random) -> Pair:
    boxes, each, sold = draw.randint(2, 9), draw.randint(4, 9), draw.randint(1, 7)
    text = f"A shop has {boxes} boxes of {each} {draw.choice(THINGS)}s and sells {sold}. How many remain?"
    total = boxes * each
    return text, f"{boxes} x {each} = {total}; {total} - {sold} = {total - sold}; answer {total - sold}"


def _as_equation(draw: random.Random) -> Pair:
    first, second, thing = draw.randint(2, 40), draw.randint(2, 40), draw.choice(THINGS)
    name, other = draw.sample(NAMES, 2)
    text = f"{name} owns {first} {thing}s, {other} owns {second}. How many do they own together?"
    return text, f"{first} + {second} = {first + second}"


def _in_a_sentence(draw: random.Random) -> Pair:
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    count, more = draw.randint(2, 30), draw.randint(2, 15)
    return f"{name} had {count} {thing}s and found {more} more.", f"{name} has {count + more} {thing}s."


def _of_money() -> Iterable[Template]:
    yield (
        "money_total",
        ("What is the total price? Answer like $12.", "{} How much is it in all? Start with the dollar sign."),
        _total_price,
    )
    yield (
        "money_change",
        ("How much change is due? Answer with dollars and cents, like $1.50.", "{}\nChange, such as $0.75:"),
        _change,
    )
    yield "money_enough", ("Is the money enough? Say yes or no.", "{} Yes or no: does the money suffice?"), _enough
    yield (
        "money_discount",
        ("What is the new price? Answer like $12.", "{} Write the reduced price with a dollar sign."),
        _discount,
    )
    yield (
        "money_receipt",
        ("Write a receipt: each item with its price on a line, then the total.", "{}\nList the prices and the total."),
        _receipt,
    )


def _total_price(draw: random.Random) -> Pair:
    count, price = draw.randint(2, 12), draw.randint(2, 15)
    return f"{draw.choice(NAMES)} buys {count} {draw.choice(THINGS)}s for ${price} each.", f"${count * price}"


def _change(draw: random.Random) -> Pair:
    paid, cents = draw.choice([5, 10, 20]), draw.randrange(105, 495, 5)
    price, left = divmod(cents, 100), divmod(paid * 100 - cents, 100)
    text = f"A {draw.choice(THINGS)} costs ${price[0]}.{price[1]:02}. {draw.choice(NAMES)} pays with ${paid}."
    return text, f"${left[0]}.{left[1]:02}"


def _enough(draw: random.Random) -> Pair:
    count, price = draw.randint(2, 9), draw.randint(2, 12)
    money = count * price + draw.choice([-4, -2, -1, 0, 2, 5])
    text = f"{draw.choice(NAMES)} has ${money} and wants {count} {draw.choice(THINGS)}s at ${price} each."
    return text, yes(money >= count * price)


def _discount(draw: random.Random) -> Pair:
    price, percent = draw.randrange(20, 400, 20), draw.choice([5, 10, 20, 25, 50])
    return f"A {draw.choice(THINGS)} for ${price} is now {percent}% cheaper.", f"${price - price * percent // 100}"


def _receipt(draw: random.Random) -> Pair:
    prices = {thing: draw.randint(2, 30) for thing in draw.sample(THINGS, 2)}
    given = " and ".join(f"a {thing} for ${price}" for thing, price in prices.items())
    lines = [*(f"{thing}: ${price}" for thing, price in prices.items()), f"total: ${sum(prices.values())}"]
    return f"{draw.choice(NAMES)} bought {given}.", "\n".join(lines)


def _of_time() -> Iterable[Template]:
    yield (
        "time_end",
        ("When does it end? Answer as h:mm.", "{} Write the time at which it is over."),
        _end,
    )
    yield (
        "time_duration",
        ("How long is it? Answer in the form 2 h 15 min.", "{}\nDuration, written like 1 h 5 min:"),
        _duration,
    )
    yield (
        "time_weekday",
        ("Which weekday will it be?", "{} Answer with the day of the week only."),
        _weekday,
    )
    yield "time_year", ("In which year was this person born?", "{}\nYear of birth:"), _year
    yield (
        "time_earlier",
        ("Which of the two is earlier? Copy it.", "Out of {}, which comes first in time?"),
        _earlier,
    )


def _end(draw: random.Random) -> Pair:
    start, minutes = draw.randrange(8 * 60, 20 * 60, 5), draw.randrange(10, 130, 5)
    kind = draw.choice(["film", "lesson", "concert", "meeting", "match"])
    return f"The {kind} starts at {clock(start)} and lasts {minutes} minutes.", clock(start + minutes)


def _duration(draw: random.Random) -> Pair:
    start, minutes = draw.randrange(6 * 60, 18 * 60, 5), draw.randrange(65, 300, 5)
    kind = draw.choice(["train ride", "flight", "party", "walk"])
    text = f"The {kind} goes from {clock(start)} to {clock(start + minutes)}."
    return text, f"{minutes // 60} h {minutes % 60} min"


def _weekday(draw: random.Random) -> Pair:
    today, days = draw.randrange(7), draw.randint(2, 20)
    return f"Today is {WEEKDAYS[today]}. What day is it in {days} days?", WEEKDAYS[(today + days) % 7]


def _year(draw: random.Random) -> Pair:
    year, age = draw.randint(1950, 2020), draw.randint(5, 80)
    return f"{draw.choice(NAMES)} turned {age} in {year}.", str(year - age)


def _earlier(draw: random.Random) -> Pair:
    first, second = draw.sample(range(0, 24 * 60, 5), 2)
    return f"{clock(first)} and {clock(second)}", clock(min(first, second))


def _of_formulas() -> Iterable[Template]:
    yield (
        "formula_from_words",
        ("Write this as a formula with + - * / ^, without a result.", "{}\nFormula (digits and + - * / ^):"),
        _formula,
    )
    yield "formula_solve", ("Solve for x. Answer like x = 3.", "What is x if {}? Answer in the form x = ..."), _equation
    yield (
        "formula_is_true",
        ("Is the equation right? Say true or false.", "{}\nTrue or false?", "Check whether {} holds: true or false."),
        _is_true,
    )
    yield (
        "formula_sign",
        ("Which sign belongs in place of the question mark, <, > or =?", "{}\nSign (<, > or =):"),
        _compared,
    )
    yield (
        "formula_remainder",
        ("Divide and give the remainder, like: 3 remainder 1", "{}\nAnswer as: QUOTIENT remainder REST"),
        _remainder,
    )
    yield "formula_decimal", ("Add the decimal numbers.", "What does {} make?", "{} ="), _decimal


def _formula(draw: random.Random) -> Pair:
    a, b, c = draw.sample(range(2, 30), 3)
    return draw.choice(
        [
            (f"the sum of {a} and {b}, times {c}", f"({a} + {b}) * {c}"),
            (f"{a} plus the product of {b} and {c}", f"{a} + {b} * {c}"),
            (f"{a} minus {b} plus {c}", f"{a} - {b} + {c}"),
            (f"{a} squared plus {b}", f"{a}^2 + {b}"),
            (f"{a} divided by the sum of {b} and {c}", f"{a} / ({b} + {c})"),
        ]
    )


def _equation(draw: random.Random) -> Pair:
    x, a = draw.randint(1, 20), draw.randint(2, 20)
    equation = draw.choice([f"x + {a} = {x + a}", f"x - {a} = {x - a}", f"{a} * x = {a * x}", f"{a + x} - x = {a}"])
    return equation, f"x = {x}"


def _is_true(draw: random.Random) -> Pair:
    a, b, error = draw.randint(2, 30), draw.randint(2, 30), draw.choice([0, 0, 0, 0, -2, -1, 1, 10])
    equation = draw.choice([f"{a} + {b} = {a + b + error}", f"{a} * {b} = {a * b + error}"])
    return equation, true(error == 0)


def _compared(draw: random.Random) -> Pair:
    a, b, c = draw.randint(2, 20), draw.randint(2, 20), draw.choice([-3, -1, 0, 2, 4])
    return f"{a} + {b} ? {a + b + c}", "<" if c > 0 else ">" if c < 0 else "="


def _remainder(draw: random.Random) -> Pair:
    divisor, quotient = draw.randint(3, 9), draw.randint(2, 12)
    rest = draw.randrange(divisor)
    return f"{divisor * quotient + rest} / {divisor}", f"{quotient} remainder {rest}"


def _decimal(draw: random.Random) -> Pair:
    first, second = draw.randint(11, 99), draw.randint(11, 99)
    return f"{first / 10} + {second / 10}", f"{(first + second) / 10}"
