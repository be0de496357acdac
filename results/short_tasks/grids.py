"""Short tasks of small grids and of what is drawn or marked up with characters."""

import random
from collections.abc import Iterable

from results.short_tasks.templates import CITIES, NAMES, THINGS, Template, drawn, numbers, turned
from results.short_tasks.vocabulary import Pair, Task

__all__ = ["of_grids"]

_FRUITS = {"🍎": "apples", "🍌": "bananas", "🍒": "cherries", "🍋": "lemons", "🍐": "pears", "🍓": "strawberries"}
_TAGS = ["b", "i", "u"]
_ORDINALS = ["first", "second", "third"]


def of_grids(draw: random.Random) -> Iterable[Task]:
    yield from drawn(draw, [*_of_rows_and_columns(), *_of_whole_grids(), *_of_drawings(), *_of_markup()])


def _written(grid: list[list[str]]) -> str:
    return "\n".join(" ".join(row) for row in grid)


def _grid(draw: random.Random, cells: str, *, size: int = 3) -> list[list[str]]:
    return [draw.choices(cells, k=size) for _ in range(size)]


def _number_grid(draw: random.Random) -> list[list[int]]:
    return [numbers(draw, 3, 9) for _ in range(3)]


def _digits(grid: list[list[int]]) -> list[list[str]]:
    return [[*map(str, row)] for row in grid]


def _of_rows_and_columns() -> Iterable[Template]:
    yield (
        "grid_row",
        ("Copy the row that is asked for.\n{}", "{} Answer with that row, cells separated by spaces."),
        _row,
    )
    yield (
        "grid_column",
        (
            "Read the column from top to bottom, with commas.\n{}",
            "{} Answer with the column's cells, separated by commas.",
        ),
        _column,
    )
    yield (
        "grid_corners",
        ("Write the four corners, row by row, with commas.\n{}", "{}\nWhich are the corner cells? Use commas."),
        _corners,
    )
    yield (
        "grid_row_sums",
        ("Write the sum of each row on a line.\n{}", "{}\nAdd up each row: one result a line."),
        _row_sums,
    )
    yield (
        "grid_find",
        ("Where is the X? Answer as row, column, counted from 1.\n{}", "{}\nGive row and column of X, such as 2, 3."),
        _find,
    )


def _row(draw: random.Random) -> Pair:
    grid, place = _grid(draw, "ABCDEFGH"), draw.randrange(3)
    return f"{_written(grid)}\nWanted: the {_ORDINALS[place]} row.", _written([grid[place]])


def _column(draw: random.Random) -> Pair:
    grid, place = _grid(draw, "ABCDEFGH"), draw.randrange(3)
    return f"{_written(grid)}\nWanted: the {_ORDINALS[place]} column.", ", ".join(row[place] for row in grid)


def _corners(draw: random.Random) -> Pair:
    grid = _digits(_number_grid(draw))
    return _written(grid), ", ".join([grid[0][0], grid[0][2], grid[2][0], grid[2][2]])


def _row_sums(draw: random.Random) -> Pair:
    grid = _number_grid(draw)
    return _written(_digits(grid)), "\n".join(str(sum(row)) for row in grid)


def _find(draw: random.Random) -> Pair:
    grid = _grid(draw, "abc")
    row, column = draw.randrange(3), draw.randrange(3)
    grid[row][column] = "X"
    return _written(grid), f"{row + 1}, {column + 1}"


def _of_whole_grids() -> Iterable[Template]:
    yield (
        "grid_invert",
        ("Write the grid with 0 and 1 exchanged.\n{}", "{}\nTurn every 0 into 1 and every 1 into 0."),
        _inverted,
    )
    yield (
        "grid_place",
        ("Put an X into the cell that is named and write the grid.\n{}", "{}\nShow the grid after this move of X."),
        _placed,
    )
    yield (
        "grid_fill_row",
        ("Replace all cells of the middle row by 0.\n{}", "{}\nWrite the grid with zeros in its second row."),
        _zeroed,
    )
    yield (
        "grid_draw",
        (
            "Draw the grid with # signs and no spaces.",
            "Draw {} of # signs without spaces.",
            "2 rows of 3 is ###\n###. Draw {}.",
        ),
        _drawn_grid,
    )
    yield (
        "grid_swap_rows",
        ("Exchange the first and the last row.\n{}", "{}\nLet the top row and the bottom row change places."),
        _swapped_rows,
    )


def _inverted(draw: random.Random) -> Pair:
    grid = _grid(draw, "01")
    return _written(grid), _written([["0" if cell == "1" else "1" for cell in row] for row in grid])


def _placed(draw: random.Random) -> Pair:
    grid = _grid(draw, "..O")
    row, column = draw.randrange(3), draw.randrange(3)
    grid[row][column] = "."
    given = f"{_written(grid)}\nX goes to row {row + 1}, column {column + 1}."
    grid[row][column] = "X"
    return given, _written(grid)


def _zeroed(draw: random.Random) -> Pair:
    grid = _digits(_number_grid(draw))
    return _written(grid), _written([grid[0], ["0"] * 3, grid[2]])


def _drawn_grid(draw: random.Random) -> Pair:
    rows, columns = draw.randint(2, 9), draw.randint(2, 12)
    return f"{rows} rows of {columns}", "\n".join(["#" * columns] * rows)


def _swapped_rows(draw: random.Random) -> Pair:
    grid = _grid(draw, "ABCDEFGH")
    return _written(grid), _written(grid[::-1])


def _of_drawings() -> Iterable[Template]:
    yield (
        "bars_draw",
        ("Draw a bar of # for each line, like: tea ##\n{}", "Write each number as that many # signs.\n{}"),
        _bars,
    )
    yield (
        "emoji_write",
        ("Draw the fruits as emoji, without spaces.", "{}\nWrite this as emoji only, side by side."),
        lambda draw: turned(_emoji(draw)),
    )
    yield (
        "emoji_count",
        ("Say how many of each fruit there are, like: 2 apples, 3 pears", "{} Count the fruits: N name, N name"),
        _emoji,
    )


def _bars(draw: random.Random) -> Pair:
    bars = {thing: draw.randint(1, 9) for thing in draw.sample(THINGS, 2)}
    given = "\n".join(f"{thing} {length}" for thing, length in bars.items())
    return given, "\n".join(f"{thing} {'#' * length}" for thing, length in bars.items())


def _emoji(draw: random.Random) -> Pair:
    counts = {sign: draw.randint(2, 5) for sign in draw.sample([*_FRUITS], 2)}
    signs = "".join(sign * count for sign, count in counts.items())
    return signs, ", ".join(f"{count} {_FRUITS[sign]}" for sign, count in counts.items())


def _of_markup() -> Iterable[Template]:
    yield (
        "html_wrap",
        ("Put the HTML tag around the text.", "As b: yes becomes <b>yes</b>, write {}"),
        _wrapped,
    )
    yield (
        "html_strip",
        ("Remove the HTML tags.", "{}\nWrite the text only, without tags."),
        _stripped,
    )
    yield (
        "markdown_link",
        ("Write a Markdown link.", "[Home](https://a.org) is a link in Markdown. Write one for {}."),
        _linked,
    )


def _wrapped(draw: random.Random) -> Pair:
    tag, text = draw.choice([*_TAGS, "p", "h1", "li"]), f"{draw.choice(NAMES)} in {draw.choice(CITIES)}"
    return f"{tag}: {text}", f"<{tag}>{text}</{tag}>"


def _stripped(draw: random.Random) -> Pair:
    tag, name, city = draw.choice([*_TAGS]), draw.choice(NAMES), draw.choice(CITIES)
    return f"<p><{tag}>{name}</{tag}> lives in {city}.</p>", f"{name} lives in {city}."


def _linked(draw: random.Random) -> Pair:
    text, url = draw.choice(CITIES), f"https://{draw.choice(THINGS)}.example.com"
    return f"the text {text} and the address {url}", f"[{text}]({url})"
