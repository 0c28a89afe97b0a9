"""How JSON becomes results.

Each result is a frozen dataclass of the fields that llama.cpp sends today; all that came, also what has no field, is in
``raw``. What an answer lacks is None, or empty where it is a sequence.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache, partial
from typing import Any, TypeVar, Union, cast

from llamatel.providers import HtmlRepresentation

T = TypeVar("T", bound="Result")


@dataclass(frozen=True)
class Result(HtmlRepresentation):
    """Base: ``raw`` is the JSON object as it came."""

    raw: Mapping[str, Any] = field(repr=False, compare=False, default_factory=dict)


def decode(kind: type[T], document: Mapping[str, Any]) -> T:
    """Make a result of a JSON object; fields that it lacks, or has in another form, stay at their defaults."""
    values: dict[str, Any] = {}
    for name, convert in _plan(cast("Any", kind)):
        if name in document:
            value = document[name] if convert is None else convert(document[name])
            if value is not None:
                values[name] = value
    return kind(raw=document, **values)


@cache
def _plan(kind: Any) -> tuple[tuple[str, Callable[[Any], Any] | None], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((one.name, _converter(hints[one.name])) for one in fields(kind) if one.name != "raw")


def _converter(hint: Any) -> Callable[[Any], Any] | None:
    """What makes a field's value; None where it is taken as it is."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        kinds = [one for one in typing.get_args(hint) if one is not type(None)]
        hint = kinds[0] if len(kinds) == 1 else Any
    if isinstance(hint, type) and issubclass(hint, Result):
        return partial(_one, hint)
    if typing.get_origin(hint) is tuple:
        [element, _] = typing.get_args(hint)
        convert = _converter(element)
        return lambda value: _many(convert, value)
    return None


def _one(kind: type[Result], value: Any) -> Result | None:
    return decode(kind, value) if isinstance(value, Mapping) else None


def _many(convert: Callable[[Any], Any] | None, value: Any) -> tuple[Any, ...] | None:
    if not isinstance(value, list):
        return None
    made = value if convert is None else [convert(one) for one in value]
    return tuple(one for one in made if one is not None)
