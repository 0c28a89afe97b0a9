"""Finds the span that a LangChain instrumentation created for the current call of a model.

Such instrumentations are callbacks of LangChain and keep their spans out of OpenTelemetry's current context. LangChain
makes a run manager for each call, which has the call's ``run_id`` and the callbacks; those have the span:
openinference-langchain by ``get_span(run_id)``, opentelemetry-langchain by ``spans[run_id]``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from opentelemetry.trace import Span

_MANAGERS = ("CallbackManagerForLLMRun", "AsyncCallbackManagerForLLMRun")

_current: ContextVar[_Run | None] = ContextVar("llamatel_langchain_run", default=None)


class _Run:
    """A call of a model that LangChain is about to make."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self.used = False
        """Whether its request was sent, or cannot be distinguished from another run's."""

    @property
    def span(self) -> Span | None:
        """Its span, while that is open."""
        run_id = self.manager.run_id
        for handler in self.manager.handlers:
            get_span = getattr(handler, "get_span", None)
            if callable(get_span):
                found = get_span(run_id)
            else:
                spans = getattr(handler, "spans", None)
                found = getattr(spans.get(run_id), "span", None) if isinstance(spans, dict) else None
            if isinstance(found, Span) and found.is_recording():
                return found
        return None


def started(wrapped: Callable[..., None], manager: Any, args: Any, kwargs: Any) -> None:
    """Wraps ``BaseRunManager.__init__``: LangChain starts a run, in the context in which it then calls the model."""
    wrapped(*args, **kwargs)
    if type(manager).__name__ not in _MANAGERS:
        return
    run, before = _Run(manager), _current.get()
    if before is not None and before.manager.run_id == manager.run_id:  # another view of the same run
        return
    # Several prompts in one call: all runs start before the first request.
    run.used = before is not None and not before.used and before.span is not None
    if run.used and before is not None:
        before.used = True
    _current.set(run)


def current_span() -> Span | None:
    """The span of the run that is sending its request; None if there is none, or it is ambiguous."""
    run = _current.get()
    if run is None or run.used:
        return None
    run.used = True
    return run.span
