"""Callbacks for finished requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Listeners(Generic[T]):
    """Callables in the order of registration. Thread-safe: they can be added and removed while others are called."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[object, Callable[[T], None]] = {}
        """Replaced, never changed: iteration is not affected."""

    def add(self, listener: Callable[[T], None]) -> Callable[[], None]:
        """Keep ``listener``, once for each time it is added; returns what ends that."""
        subscription = object()
        with self._lock:
            self._kept = {**self._kept, subscription: listener}

        def remove() -> None:
            with self._lock:
                self._kept = {key: kept for key, kept in self._kept.items() if key is not subscription}

        return remove

    def call(self, argument: T) -> None:
        """Call each; an exception of one keeps the later ones from being called."""
        for listener in self:
            listener(argument)

    def __iter__(self) -> Iterator[Callable[[T], None]]:
        return iter(self._kept.values())
