"""A context that may be left in another task than the one that entered it.

That happens with ``yield`` inside a ``with`` block: an async generator may be closed by another task, or by the garbage
collector. OpenTelemetry's ``detach`` then logs a traceback, as a token only resets the context that it came from.
"""

from __future__ import annotations

from contextvars import Token

from opentelemetry.context import Context, attach, get_current


class EnteredContext:
    """A context that is current from now until ``leave``."""

    __slots__ = ("_context", "_outer", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._outer = get_current()
        self._token: Token[Context] = attach(context)

    @property
    def is_current(self) -> bool:
        """Whether it is the current one."""
        return get_current() is self._context

    def leave(self) -> None:
        """Make the context from before current again, unless this one is no longer current here."""
        try:
            self._token.var.reset(self._token)
        except (ValueError, RuntimeError):  # another task than the one that entered it
            if self.is_current:
                attach(self._outer)


class SteppedContext:
    """The context of a generator's own code: entered for each step, left while its consumer runs."""

    __slots__ = ("_context", "_entered")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._entered: EnteredContext | None = None

    def __enter__(self) -> None:
        self._entered = EnteredContext(self._context)

    def __exit__(self, *_: object) -> None:
        if self._entered is not None:
            # The code may be inside its own span, which is current again in the next step.
            self._context = get_current()
            self._entered.leave()
            self._entered = None
