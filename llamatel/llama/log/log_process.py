"""One process that writes into a log, as its lines show it, and the events that separating processes yields."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from llamatel.llama.log.log_line import LogLine

UNKNOWN = -1
"""Used instead of a process number if several processes are possible."""
TASKS_APART = 64
"""A process with several slots does not launch tasks strictly in the order of their numbers."""
_SLOTS_APART = 1000
"""More than any slot number, which has three digits at most."""
APART_S = 5.0
"""Processes that started closer together cannot be distinguished by the time at which their lines are read."""
SETTLED = 5
"""Lines read as they were written, this many times, before one that is early counts as another server's."""
_ON_TIME_S = 1.0
"""Lines that are read as they are written are delayed by less."""
LISTENING = re.compile(r"listening on (?:https?://(\S{1,255}):(\d{1,5})\b|unix://(\S{1,4096}))|LISTENING")
_SLOTS = re.compile(r"n_slots = (\d{1,4})\b")
_ANY_HOST = ("0.0.0.0", "::", "127.0.0.1", "localhost", "::1")  # noqa: S104 - recognised, not bound


def spare_slot(slot: int, taken: Collection[int]) -> int:
    """A slot number for a request of ``UNKNOWN`` that none of the ``taken`` ones shares; see ``own_slot``."""
    return next(number for number in range(slot, 1 << 30, _SLOTS_APART) if number not in taken)


def own_slot(slot: int) -> int:
    """The slot that llama.cpp logged, for a number that may be from ``spare_slot``."""
    return slot % _SLOTS_APART


class Change(Enum):
    """What happened to a process."""

    LINE = "this line is its next: it was held back"
    REPLACED = "its process was replaced: its requests failed"
    FORGOTTEN = "another process may have replaced it: the outcome of its requests is unknown"
    LOST = "its request in this slot cannot be followed any further; slot -1: a request that was not read at all"


class Event(NamedTuple):
    """What to do before the line itself is read."""

    change: Change
    process: int
    line: str = ""
    parts: LogLine | None = None
    now: float = 0.0
    slot: int = -1


@dataclass(slots=True)
class LogProcess:
    """One process, as its lines show it."""

    number: int
    clock: int = 0
    """Distinguishes its clock from those of earlier and later processes, which may be the same server's."""
    last: float = 0.0
    """Log time of its last line."""
    started_at: float | None = None
    """Unix time at the latest."""
    on_time: int = 0
    """How often lines were read as they were written, judged by ``started_at``."""
    on_time_at: float = 0.0
    """When it was last (Unix time)."""
    loading: list[Event] | None = None
    """Its lines from its start until it listens."""
    host: str | None = None
    port: int | None = None
    slots: int | None = None
    running: dict[int, int] = field(default_factory=dict)
    """Tasks by slot."""
    newest_task: int = -1
    idle_task: int = -1
    """No task up to this one can start any more: it was idle after it had started."""
    all_known: bool = True
    """Whether all of its requests are known; else some may be assigned to ``UNKNOWN``."""
    lines_at: int = 0
    """Number of its last line."""
    started_with: set[str] = field(default_factory=set)
    """Lines that a process writes once."""
    alive: bool = False
    """Whether it wrote after another process had written."""
    first_line_at: float = 0.0
    """Unix time of its first line."""

    def start(self, slot: int, task: int) -> None:
        """A task was launched in a slot."""
        if not self.running:
            self.idle_task = self.newest_task
        self.newest_task = max(self.newest_task, task)
        self.running[slot] = task

    def could_start(self, slot: int, task: int) -> bool:
        """Whether a task can be launched in a slot."""
        in_order = self.slots == 1 or (self.all_known and not self.running)
        over = self.newest_task if in_order else min(self.idle_task, self.newest_task - TASKS_APART)
        return (
            self.loading is None
            and slot not in self.running
            and task > over
            and (self.slots is None or slot < self.slots)
        )

    def learn(self, text: str) -> None:
        """Read slots and address from a message."""
        if "n_slots = " in text and (found := _SLOTS.search(text)):
            self.slots = int(found.group(1))
        if "listening on " in text and (found := LISTENING.search(text)):
            self.host = found.group(3) or (found.group(1) or "").strip("[]") or None
            self.port = int(found.group(2)) if found.group(2) else None

    def in_time(self, time: float, now: float) -> bool:
        """Whether a timestamp read at ``now`` can be this process's, whose lines were read as they were written."""
        started_at = now - time
        if self.started_at is None:
            self.started_at = started_at
        early = self.started_at - started_at
        if early > _ON_TIME_S:
            # Too early. Its clock cannot jump, but ours may have been set, or its lines were delayed.
            if self.on_time >= SETTLED and early > APART_S and time - self.last > APART_S:
                return False
            self.on_time = 0
        elif early > -_ON_TIME_S and now != self.on_time_at:
            self.on_time += 1
            self.on_time_at = now
        self.started_at = min(started_at, self.started_at)
        return True

    def has_address_of(self, other: LogProcess) -> bool:
        """Whether both listen on one address, as far as is known."""
        if self.port is None and self.host is None:
            return False
        return self.port == other.port and (
            self.host == other.host or (self.host in _ANY_HOST and other.host in _ANY_HOST)
        )
