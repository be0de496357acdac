"""Draws samples from the generators of reasoning-gym, with its defaults or with settings: ``gcd?max_numbers=3``."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, NoReturn
from urllib.parse import unquote

from loragen_infer.words import nearest

from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.drawing import rows_of

__all__ = ["draw", "parse_settings"]

# Whoever draws decides these; with others, prepare would draw what collect draws.
_NOT_SETTINGS = {"seed", "size"}


def draw(name: str, *, size: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield ``size`` prompts and responses of the generator ``name``, which may have settings after a question mark."""
    from reasoning_gym import factory

    data_sets = factory.DATASETS
    generator, _, query = name.partition("?")
    if generator not in data_sets:
        raise LoragenTrainError(f"reasoning-gym has no task {generator!r}{nearest(generator, data_sets)}.")
    settings = parse_settings(query, f"reasoning-gym:{name}")
    known = [field.name for field in dataclasses.fields(data_sets[generator][1]) if field.name not in _NOT_SETTINGS]
    for setting in settings:
        if setting not in known:
            near = nearest(setting, known) or f"; it has {', '.join(known) or 'none'}"
            raise LoragenTrainError(f"reasoning-gym:{name}: {generator} has no setting {setting!r}{near}.")
    return _named(name, rows_of(generator, settings, size=size, seed=seed))


def parse_settings(query: str, where: str) -> dict[str, Any]:
    """Return the settings in ``a=1&b=text``: values as JSON where they are JSON, else as text, both percent-decoded."""
    settings: dict[str, Any] = {}
    for part in query.split("&") if query else []:
        name, equals, value = part.partition("=")
        name = unquote(name)
        if not name or not equals:
            raise LoragenTrainError(f"{where}: {part!r} is no setting; write NAME=VALUE, with '&' between two of them.")
        if name in settings:
            raise LoragenTrainError(f"{where} gives the setting {name!r} twice; remove one.")
        settings[name] = _value(unquote(value))
    return settings


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _named(name: str, rows: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    try:
        yield from rows
    except LoragenTrainError as error:
        # A generator checks its settings by assertions, and meets what it did not check only when it draws.
        raise LoragenTrainError(f"reasoning-gym:{name} cannot be drawn from: {error}.") from error
