"""Warnings about current problems of a server, one line each, with the flag that would help.

Nothing here reads a clock or queries a server: it evaluates snapshots and finished requests (``alarm_conditions``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from llamatel.gpu.offload import fell_back
from llamatel.records import Completion, Outcome, ServerInfo, ServerKey
from llamatel.snapshots import Snapshot
from llamatel.ui.alarm_conditions import ON_CPU, History, conditions, context_full
from llamatel.ui.objective_window import REQUESTS
from llamatel.ui.objectives import Objectives

T = TypeVar("T")

_QUIET_S = 600.0
"""The same warning about the same server is not repeated within this time."""
_SERVERS = 1024
"""History of removed servers is dropped beyond this many."""
_LONGEST_NAME = 120


@dataclass(frozen=True, slots=True)
class Alarm:
    """A current problem."""

    name: str
    """As in the alert rules: ``kv_headroom``."""
    server: ServerInfo | None
    text: str
    model: str | None = None
    """The model, of a router's."""

    def __str__(self) -> str:
        """``127.0.0.1:8090 pod=llama-0: …``, a router's with the model; without a server, about llamatel itself."""
        if self.server is None:
            return self.text
        labels = (f"{name}={value}" for name, value in self.server.own_labels)
        model = () if self.model is None else (self.model if self.model.isprintable() else repr(self.model),)
        name = " ".join((self.server.shown_address, *model, *labels))
        return f"{name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + '…'}: {self.text}"


class Alarms:
    """Evaluates consecutive snapshots and returns new warnings.

    ``record`` and ``check`` may run in two threads; neither may run in two at once.
    """

    def __init__(self, objectives: Objectives | None = None) -> None:
        self.objectives = objectives or Objectives()
        self._servers: dict[ServerKey, History] = {}
        self._own = History()
        self._dropped = 0
        self._finished: deque[Completion] = deque(maxlen=REQUESTS)

    def record(self, completion: Completion) -> None:
        """Record a finished request; cheap, for the observer's thread."""
        self._finished.append(completion)

    def check(self, snapshot: Snapshot) -> list[Alarm]:
        """The current problems that were not reported in the last ten minutes."""
        now = snapshot.taken_at
        forget_removed(self._servers, snapshot, _SERVERS)
        found: list[Alarm] = []
        full: dict[History, int] = {}
        while self._finished:
            request = self._finished.popleft()
            history = self._history(request.server)
            history.window.add(request, self.objectives)
            if request.outcome is Outcome.CONTEXT_FULL and not request.is_child:
                full[history] = full.get(history, 0) + 1
        for state in snapshot.servers:
            history = self._history(state.server)
            wrong = list(conditions(state, history, now, self.objectives))
            if number := full.get(history):
                wrong.insert(0, ("context_full", context_full(number, state)))
            if fell_back(state, snapshot.devices):
                wrong.append(("on_cpu", ON_CPU))
            model = None if state.router_model is None else state.server.model
            found += [Alarm(name, state.server, text, model) for name, text in wrong]
        found += self._own_losses(snapshot)
        return [alarm for alarm in found if self._is_new(alarm, now)]

    def _own_losses(self, snapshot: Snapshot) -> Iterator[Alarm]:
        dropped = sum(snapshot.records_dropped.values())
        if dropped > self._dropped:
            reasons = ", ".join(sorted(reason for reason, number in snapshot.records_dropped.items() if number))
            yield Alarm(
                "telemetry_dropped", None,
                f"{dropped - self._dropped} spans, requests or lines of telemetry were lost ({reasons}): "
                f"{_loss_remedy(snapshot.records_dropped)}",
            )  # fmt: skip
        self._dropped = dropped

    def _history(self, server: ServerInfo) -> History:
        history = self._servers.get(key := server.key)
        if history is None:
            history = self._servers[key] = History()
        return history

    def _is_new(self, alarm: Alarm, now: float) -> bool:
        raised_at = (self._own if alarm.server is None else self._history(alarm.server)).raised_at
        last = raised_at.get(alarm.name)
        if last is not None and now - last < _QUIET_S:
            return False
        raised_at[alarm.name] = now
        return True


def _loss_remedy(dropped: Mapping[str, int]) -> str:
    lines = sum(dropped.get(reason, 0) for reason in ("jsonl_failed", "server_log_failed"))
    return "is the disk full?" if lines == sum(dropped.values()) else "is the OTLP endpoint up and fast enough?"


def forget_removed(remembered: dict[ServerKey, T], snapshot: Snapshot, limit: int) -> None:
    """Above ``limit`` servers, drop the entries of those that are not in the snapshot."""
    if len(remembered) > limit:
        present = {state.server.key for state in snapshot.servers}
        for key in remembered.keys() - present:
            del remembered[key]
