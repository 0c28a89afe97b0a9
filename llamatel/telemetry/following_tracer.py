"""A tracer that follows the process's tracer provider when the application registers one after ``init()``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, Tracer

from llamatel.telemetry.sdk_adapter import is_placeholder


class FollowingTracer(Tracer):
    """Our tracer until the application registers a provider; then, unless ours exports, that provider's."""

    def __init__(
        self,
        own: Tracer,
        *,
        is_ours: Callable[[object], bool],
        stays: bool,
        joined: Callable[[object], object],
        make: Callable[[trace.TracerProvider], Tracer],
    ) -> None:
        """``stays``: our provider keeps exporting our spans; ``joined`` is called with the application's provider."""
        self._own = own
        self._is_ours = is_ours
        self._stays = stays
        self._joined = joined
        self._make = make
        self._seen: object = None
        self._tracer = own

    def current(self) -> Tracer:
        """The tracer to use now."""
        provider = trace.get_tracer_provider()
        if provider is not self._seen:
            self._seen = provider
            foreign = not (is_placeholder(provider) or self._is_ours(provider))
            if foreign:
                self._joined(provider)
            self._tracer = self._make(provider) if foreign and not self._stays else self._own
        return self._tracer

    def start_span(self, *arguments: Any, **options: Any) -> Span:
        """As the API has it."""
        return self.current().start_span(*arguments, **options)

    def start_as_current_span(self, *arguments: Any, **options: Any) -> Any:
        """As the API has it."""
        return self.current().start_as_current_span(*arguments, **options)
