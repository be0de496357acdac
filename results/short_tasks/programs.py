"""Short tasks of files and addresses, and of one line of a programming language."""

import random
from collections.abc import Iterable

from results.short_tasks.templates import COLORS, THINGS, Template, drawn
from results.short_tasks.vocabulary import Pair, Task

__all__ = ["of_programs"]

_ENDINGS = ["txt", "png", "csv", "html", "py", "pdf", "mp3", "zip"]
_FOLDERS = ["home", "data", "photos", "letters", "backup", "music", "work", "shared"]
_TABLES = ["people", "orders", "books", "rooms", "cities"]
_COLUMNS = ["name", "city", "date", "title", "color"]
_NUMBER_COLUMNS = ["price", "age", "size", "weight", "score"]


def of_programs(draw: random.Random) -> Iterable[Task]:
    yield from drawn(draw, [*_of_files(), *_of_code()])


def _of_files() -> Iterable[Template]:
    yield "path_name", ("Which file name is in the path?", "{}\nFile name without the folders:"), _file_name
    yield "path_ending", ("Change the file's ending as the arrow says.", "Apply the new ending: {}"), _new_ending
    yield "path_join", ("Join folder, subfolder and file to one path with slashes.", "{} as one path:"), _joined
    yield (
        "url_query",
        ("Write the parameters of the address, one name = value a line.", "{}\nList its parameters like: page = 3"),
        _query,
    )


def _path(draw: random.Random) -> tuple[str, str, str, str]:
    folder, other = draw.sample(_FOLDERS, 2)
    return folder, other, draw.choice(THINGS), draw.choice(_ENDINGS)


def _file_name(draw: random.Random) -> Pair:
    folder, other, name, ending = _path(draw)
    return f"/{folder}/{other}/{name}.{ending}", f"{name}.{ending}"


def _new_ending(draw: random.Random) -> Pair:
    folder, _, name, old = _path(draw)
    new = draw.choice([ending for ending in _ENDINGS if ending != old])
    return f"{folder}/{name}.{old} -> {new}", f"{folder}/{name}.{new}"


def _joined(draw: random.Random) -> Pair:
    folder, other, name, ending = _path(draw)
    return f"{folder}, {other}, {name}.{ending}", f"{folder}/{other}/{name}.{ending}"


def _query(draw: random.Random) -> Pair:
    color, page, thing = draw.choice(COLORS), draw.randint(1, 30), draw.choice(THINGS)
    return f"https://example.com/{thing}?color={color}&page={page}", f"color = {color}\npage = {page}"


def _of_code() -> Iterable[Template]:
    yield "code_python_value", ("What does Python show for this expression?", ">>> {}"), _python_value
    yield (
        "code_python_range",
        ("Write a Python range for these integers, like range(1, 4).", "range(1, 4) is 1 to 3. Write the range for {}"),
        _python_range,
    )
    yield (
        "code_python_call",
        ("Write the call in Python, like go(1, 'a').", "{}\nThe call in Python, strings in single quotes:"),
        _python_call,
    )
    yield (
        "code_python_loop",
        ("What does the program print? Write one line for each output.\n{}", "{}\nOutput, a line each:"),
        _python_loop,
    )
    yield (
        "code_sql",
        ("Write an SQL query, like SELECT a FROM b WHERE c > 1;", "{} In SQL (SELECT ... FROM ... WHERE ...;):"),
        _sql,
    )
    yield (
        "code_spreadsheet",
        ("Write the spreadsheet formula, like =MAX(B1:B5).", "{}\nFormula with =SUM, =AVERAGE, =MIN or =MAX:"),
        _spreadsheet,
    )
    yield (
        "code_assign",
        (
            'Write the assignment in Python, like x = 1 or x = "tea".',
            "{}\nIn one line of Python, texts in double quotes:",
        ),
        _assignment,
    )
    yield (
        "code_latex",
        ("Write the formula in LaTeX, without dollar signs.", r"a half is \frac{1}{2}. LaTeX of {}:"),
        _latex,
    )


def _python_value(draw: random.Random) -> Pair:
    word, a, b = draw.choice(THINGS), draw.randint(2, 9), draw.randint(2, 9)
    forms = {
        f"len('{word}') + {a}": len(word) + a,
        f"'{word}'[0]": repr(word[0]),
        f"{a} ** 2 - {b}": a**2 - b,
        f"{a * b + 1} % {b}": 1,
        f"[{a}, {b}, {a + b}][-1]": a + b,
        f"'{word}'.upper()": repr(word.upper()),
        f"{a} > {b}": a > b,
        f"max({a}, {b}) * 2": max(a, b) * 2,
    }
    form = draw.choice([*forms])
    return form, str(forms[form])


def _python_range(draw: random.Random) -> Pair:
    first, count = draw.randint(0, 40), draw.randint(3, 30)
    return f"{first} to {first + count}", f"range({first}, {first + count + 1})"


def _python_call(draw: random.Random) -> Pair:
    function, thing, number = draw.choice(["paint", "find", "sell", "move"]), draw.choice(THINGS), draw.randint(1, 50)
    return f"function {function}, arguments {number} and the string {thing}", f"{function}({number}, '{thing}')"


def _python_loop(draw: random.Random) -> Pair:
    first, last, factor = draw.randint(1, 4), draw.randint(5, 7), draw.randint(2, 9)
    sign = draw.choice(["*", "+"])
    printed = [number * factor if sign == "*" else number + factor for number in range(first, last)]
    return f"for i in range({first}, {last}):\n    print(i {sign} {factor})", "\n".join(map(str, printed))


def _sql(draw: random.Random) -> Pair:
    table, number = draw.choice(_TABLES), draw.randint(2, 90)
    wanted, tested = draw.choice(_COLUMNS), draw.choice(_NUMBER_COLUMNS)
    word, sign = draw.choice([("above", ">"), ("below", "<")])
    text = f"the {wanted} of all {table} whose {tested} is {word} {number}"
    return text, f"{' '.join(['SELECT', wanted, 'FROM', table, 'WHERE', tested, sign, str(number)])};"


def _spreadsheet(draw: random.Random) -> Pair:
    word, function = draw.choice(
        [("Sum", "SUM"), ("Average", "AVERAGE"), ("Smallest value", "MIN"), ("Largest value", "MAX")]
    )
    column, first, count = draw.choice("ABCDEF"), draw.randint(1, 9), draw.randint(2, 30)
    text = f"{word} of the cells {column}{first} to {column}{first + count}"
    return text, f"={function}({column}{first}:{column}{first + count})"


def _assignment(draw: random.Random) -> Pair:
    name, number, other = draw.choice(THINGS), draw.randint(2, 90), draw.choice(COLORS)
    return draw.choice(
        [
            (f"{name} is the number {number}", f"{name} = {number}"),
            (f"{name} is the text {other}", f'{name} = "{other}"'),
            (f"{name} is the list of {number} and {number + 1}", f"{name} = [{number}, {number + 1}]"),
            (f"{name} is {number} times {other}", f"{name} = {number} * {other}"),
        ]
    )


def _latex(draw: random.Random) -> Pair:
    a, b = draw.randint(2, 20), draw.randint(2, 20)
    return draw.choice(
        [
            (f"{a} divided by {b}, as a fraction", rf"\frac{{{a}}}{{{b}}}"),
            (f"the square root of {a * b}", rf"\sqrt{{{a * b}}}"),
            (f"x to the power of {a}", f"x^{{{a}}}"),
            (f"x with the index {a}", f"x_{{{a}}}"),
        ]
    )
