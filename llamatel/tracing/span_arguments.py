"""Arguments and results of traced functions as span attributes: opt-in, cut, redactable."""

from __future__ import annotations

import inspect
import logging
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.trace import Span

from llamatel.errors import UsageError
from llamatel.tracing.openinference import set_attributes
from llamatel.tracing.span_values import MAX_TEXT, cut, encodable

_log = logging.getLogger(__name__)

_ELEMENTS = 20
_OWNERS = ("self", "cls")

Redact = Callable[[str, Any], Any]
"""Called with an argument's name (``return`` for a result) and its value; returns what to record, None for nothing."""


class RecordedArguments:
    """Which arguments and results of a function are recorded."""

    def __init__(self, arguments: bool | tuple[str, ...], result: bool, redact: Redact | None) -> None:
        """Raises UsageError."""
        if isinstance(arguments, str):
            raise UsageError(f"arguments is True, or a tuple of names: ({arguments!r},)")
        if redact is not None and not callable(redact):
            raise UsageError(f"redact is a function of a name and a value, not {redact!r}")
        self.arguments = bool(arguments)
        self.result = result
        self._only = None if isinstance(arguments, bool) else frozenset(arguments)
        self._redact = redact
        self._signature: inspect.Signature | None = None
        self._failed = False

    def inspect(self, function: Callable[..., Any]) -> None:
        """Read its signature; called once, when it is decorated. Raises UsageError for an argument that it lacks."""
        if not self.arguments:
            return
        try:
            self._signature = inspect.signature(function)
        except (TypeError, ValueError):  # a builtin without a signature
            return
        unknown = (self._only or frozenset()) - self._signature.parameters.keys()
        if unknown:
            raise UsageError(f"{getattr(function, '__qualname__', function)} has no argument {min(unknown)!r}")

    def write_arguments(self, span: Span, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Attributes of the given arguments; defaults are not recorded."""
        if not span.is_recording():
            return
        try:
            given = self._signature.bind(*args, **kwargs).arguments if self._signature is not None else dict(kwargs)
        except TypeError:  # the call itself raises it
            return
        recorded: dict[str, str | bool | int | float] = {}
        for index, (name, value) in enumerate(given.items()):
            owner = index == 0 and name in _OWNERS
            if not owner and (self._only is None or name in self._only):
                recorded.update(self._shown(f"llamatel.argument.{name}", name, value))
        set_attributes(span, recorded)

    def write_result(self, span: Span, value: Any) -> None:
        """The attribute of the function's result."""
        if span.is_recording():
            set_attributes(span, self._shown("llamatel.result", "return", value))

    def _shown(self, key: str, name: str, value: Any) -> dict[str, str | bool | int | float]:
        """The value as an attribute ``key``; empty where it is not recorded."""
        try:
            value = value if self._redact is None else self._redact(name, value)
            if value is not None or self._redact is None:
                return {key: shown(value)}
        except Exception:  # noqa: BLE001 - the boundary to redact and to foreign __repr__: it must not end the call
            if not self._failed:
                self._failed = True
                _log.exception("'%s' was not recorded; further failures are not logged", key)
        return {}


def shown(value: Any) -> str | bool | int | float:
    """A value as an attribute: numbers unchanged, text cut, a short and cheap repr of anything else."""
    if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    text = value if isinstance(value, str) else _REPR.repr(value)
    return cut(encodable(text))


def _short_repr() -> reprlib.Repr:
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = MAX_TEXT
    short.maxlevel = 4
    short.maxdict = short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = short.maxdeque = _ELEMENTS
    return short


_REPR = _short_repr()
