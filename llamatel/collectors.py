"""The interface of collectors, and their discovery.

A collector has a ``name`` (also its file's name, its flag and its metrics' subsystem) and some of ``on_completion``,
``on_call`` and ``on_snapshot``. It returns samples and uses neither OpenTelemetry nor the network. Times and failures
are handled by the observer. Third-party collectors are found like ours, through the entry-point group
``llamatel.collectors``; they may add rows to the metric table.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import NamedTuple

from llamatel.errors import PipelineError, UsageError
from llamatel.metrics import Metric
from llamatel.records import ClientCall, Completion, ServerInfo
from llamatel.snapshots import Snapshot

_log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "llamatel.collectors"


class Sample(NamedTuple):
    """One value of a metric. A tuple, because ten are created per request, in a third of the time of a class."""

    metric: str
    value: float
    server: ServerInfo | None = None
    """The server; None for a value about llamatel itself."""
    attributes: Mapping[str, str | int] = MappingProxyType({})


class Collector:
    """Base class of collectors; override what it needs."""

    name: str = ""
    metrics: tuple[Metric, ...] = ()
    """Additional rows of the metric table, for collectors from other packages."""

    def start(self) -> None:
        """Called when telemetry starts; for a collector with its own source."""

    def stop(self) -> None:
        """Called when telemetry stops."""

    def complete(self, completion: Completion) -> Completion:
        """Add data of this collector's source to a finished request, before spans and samples are made.

        Called on the observer's thread; it may wait there for some tenths of a second.
        """
        return completion

    def complete_snapshot(self, snapshot: Snapshot) -> Snapshot:
        """Add data of this collector's source to a snapshot, before any collector sees it."""
        return snapshot

    def on_completion(self, completion: Completion) -> Iterable[Sample]:
        """Called once for each finished request, on the observer's thread."""
        return ()

    def on_call(self, call: ClientCall) -> Iterable[Sample]:
        """Called once for each finished call of an instrumented client, on the observer's thread."""
        return ()

    def on_snapshot(self, snapshot: Snapshot) -> Iterable[Sample]:
        """Called once for each export cycle."""
        return ()


def available() -> dict[str, EntryPoint]:
    """The installed collectors by name; looked up at start, not at import (it takes about 8 ms)."""
    return {entry.name: entry for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name)}


def load(only: Collection[str] = (), without: Collection[str] = ()) -> Iterator[Collector]:
    """Import and create the chosen collectors: those in ``only``, else all, except those in ``without``.

    Raises UsageError for a name that is not installed, PipelineError for one in ``only`` that cannot be loaded;
    any other that cannot be loaded is left out with a warning.
    """
    installed = available()
    for name in (*only, *without):
        if name not in installed:
            raise UsageError(f"there is no collector '{name}': installed are {', '.join(installed) or 'none'}")
    chosen = tuple(only) or tuple(installed)
    for name in chosen:
        if name in without:
            continue
        try:
            collector: Collector = installed[name].load()()
        except Exception as error:
            message = f"the collector '{name}' ({installed[name].value}) cannot be loaded: {error}"
            if name in only:
                raise PipelineError(message) from error
            _log.warning("%s; it is left out", message)
            continue
        yield collector
