"""Short tasks of numbers, dates, times and units."""

import random
from collections.abc import Callable, Iterable
from datetime import date, timedelta

from babel import Locale
from num2words import num2words

from results.short_tasks.vocabulary import LANGUAGES, Task, yes

__all__ = ["of_dates", "of_numbers", "of_two_numbers", "of_units"]


def of_numbers(draw: random.Random) -> Iterable[Task]:
    rules: list[tuple[str, int, tuple[str, ...], Callable[[int], object]]] = [
        ("next", 120, ("Which number comes after this?", "Add one to the number."), lambda x: x + 1),
        ("previous", 120, ("Which number comes before this?", "Subtract one."), lambda x: x - 1),
        ("double", 120, ("Double the number.", "What is twice the number?"), lambda x: 2 * x),
        ("square", 120, ("Square the number.", "Multiply the number by itself."), lambda x: x * x),
        ("even", 999, ("Is the number even or odd?", "Even or odd?"), lambda x: "odd" if x % 2 else "even"),
        ("plus_ten", 120, ("Add ten to the number.", "What is ten more?"), lambda x: x + 10),
        ("minus_five", 120, ("Subtract five.", "What is five less?"), lambda x: x - 5),
        ("round", 120, ("Round to the nearest ten.", "Round the number to tens."), lambda x: (x + 5) // 10 * 10),
        ("negative", 120, ("Write the number with a minus.", "What is the negative of the number?"), lambda x: -x),
        ("last_digit", 999, ("What is the last digit?", "Give the final digit."), lambda x: x % 10),
        ("digit_sum", 999, ("Add up the digits.", "What is the sum of the digits?"), lambda x: sum(map(int, str(x)))),
        ("num_digits", 99999, ("How many digits does the number have?", "Count the digits."), lambda x: len(str(x))),
        ("backwards", 9999, ("Write the digits in reverse order.", "Reverse the number."), lambda x: str(x)[::-1]),
        ("binary", 120, ("Write the number in binary.", "Convert to binary."), lambda x: f"{x:b}"),
        ("hex", 999, ("Write the number in hexadecimal.", "Convert to hex."), lambda x: f"{x:x}"),
        ("roman", 120, ("Write the number in Roman numerals.", "What is the Roman numeral?"), _roman),
        ("dollars", 120, ("Write the number as dollars.", "Format it as US dollars."), lambda x: f"${x}.00"),
        ("percent", 120, ("Write the number as a percentage.", "Add a percent sign."), lambda x: f"{x}%"),
        ("above_fifty", 100, ("Is the number over fifty?", "Above fifty? Say yes or no."), lambda x: yes(x > 50)),
        ("ordinal", 120, ("Write the number as an ordinal.", "Turn the number into its ordinal."), _ordinal),
        ("ordinal_words", 120, ("Write the ordinal in words.", "Spell out the ordinal."), _ordinal_in_words),
    ]
    for name, most, instructions, rule in rules:
        yield f"number_{name}", instructions, [(str(x), str(rule(x))) for x in draw.sample(range(1, most), 90)]
    yield (
        "number_from_roman",
        ("Write the Roman numeral as a number.", "Which number is this?"),
        [(_roman(x), str(x)) for x in range(1, 120)],
    )
    yield (
        "number_from_words",
        ("Write the number in digits.", "Which number do the words say?"),
        [(num2words(x), str(x)) for x in draw.sample(range(999), 100)],
    )
    for code, language in LANGUAGES.items():
        yield (
            f"number_words_{code}",
            (f"Write the number in {language}.", f"What is the number called in {language}?"),
            [(str(x), num2words(x, lang=code)) for x in range(100)],
        )


def _ordinal(number: int) -> str:
    return str(num2words(number, to="ordinal_num"))


def _ordinal_in_words(number: int) -> str:
    return str(num2words(number, to="ordinal"))


def _roman(number: int) -> str:
    signs = {100: "C", 90: "XC", 50: "L", 40: "XL", 10: "X", 9: "IX", 5: "V", 4: "IV", 1: "I"}
    written = ""
    for value, sign in signs.items():
        written += number // value * sign
        number %= value
    return written


def of_two_numbers(draw: random.Random) -> Iterable[Task]:
    rules: list[tuple[str, tuple[str, ...], Callable[[int, int], object]]] = [
        ("add", ("Add the numbers.", "What is the sum?"), lambda a, b: a + b),
        ("subtract", ("Subtract the second number from the first.", "What is the difference?"), lambda a, b: a - b),
        ("multiply", ("Multiply the numbers.", "What is the product?"), lambda a, b: a * b),
        ("larger", ("Which number is larger?", "Choose the larger number."), max),
        ("smaller", ("Which number is smaller?", "Choose the smaller number."), min),
        (
            "compare",
            ("Is the first number larger? Say yes or no.", "Does the larger come first?"),
            lambda a, b: yes(a > b),
        ),
        ("mean", ("What is the mean of the numbers?", "Average the numbers."), lambda a, b: (a + b) / 2),
    ]
    for name, instructions, rule in rules:
        drawn = [draw.sample(range(1, 60), 2) for _ in range(100)]
        yield f"two_numbers_{name}", instructions, [(f"{a}, {b}", str(rule(a, b))) for a, b in drawn]


def of_dates(draw: random.Random) -> Iterable[Task]:
    english = Locale("en")
    months, days = ([*names["format"]["wide"].values()] for names in (english.months, english.days))
    for name, unit, names in (("month", "month", months), ("day", "day", days)):
        for step, word in ((1, "after"), (-1, "before")):
            pairs = [(one, names[(place + step) % len(names)]) for place, one in enumerate(names)]
            yield f"{name}_{word}", (f"Which {unit} comes {word} this?", f"Name the {unit} {word} this one."), pairs
    yield (
        "month_number",
        ("What number has the month?", "Write the month as a number."),
        [(month, str(number)) for number, month in enumerate(months, start=1)],
    )
    dates = [date(1950, 1, 1) + timedelta(days=draw.randrange(30_000)) for _ in range(100)]
    formats = [
        ("long", "%Y-%m-%d", "%B %-d, %Y", ("Write the date in words.", "Format the date in long form.")),
        ("iso", "%B %-d, %Y", "%Y-%m-%d", ("Write the date in ISO format.", "Format it as year-month-day.")),
        ("year", "%d.%m.%Y", "%Y", ("Which year is in the date?", "Write only the year.")),
        ("american", "%d.%m.%Y", "%m/%d/%Y", ("Write the date the American way.", "Format it as month/day/year.")),
        ("weekday", "%A, %B %-d", "%A", ("Which day of the week is in the date?", "Write only the weekday.")),
    ]
    for name, given, wanted, instructions in formats:
        yield f"date_{name}", instructions, [(day.strftime(given), day.strftime(wanted)) for day in dates]
    yield (
        "century",
        ("Which century is the year in?", "Name the century."),
        [
            (str(year), f"{num2words((year - 1) // 100 + 1, to='ordinal_num')} century")
            for year in draw.sample(range(1001, 2020), 100)
        ],
    )
    times = [divmod(minute, 60) for minute in draw.sample(range(24 * 60), 100)]
    twelve = [f"{(hour - 1) % 12 + 1}:{minute:02} {'am' if hour < 12 else 'pm'}" for hour, minute in times]
    full = [f"{hour:02}:{minute:02}" for hour, minute in times]
    yield "clock_12", ("Write the time with am or pm.", "Convert to the 12-hour clock."), zip(full, twelve, strict=True)
    yield "clock_24", ("Write the time on the 24-hour clock.", "Convert to 24 hours."), zip(twelve, full, strict=True)


def of_units(draw: random.Random) -> Iterable[Task]:
    rules = [
        ("m", "cm", 100),
        ("kg", "g", 1000),
        ("hours", "minutes", 60),
        ("weeks", "days", 7),
        ("dozen", "pieces", 12),
    ]
    for given, wanted, factor in rules:
        yield (
            f"unit_{given}",
            (f"Convert to {wanted}.", f"How many {wanted} is this?"),
            [(f"{x} {given}", f"{x * factor} {wanted}") for x in draw.sample(range(2, 100), 90)],
        )
