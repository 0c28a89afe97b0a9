"""Timings on separate lines after a heading (builds until April 2026), in a log of several processes.

Such a line has neither slot nor task: it belongs to the only open heading. If several are open, none of their requests
gets timings, and each is lost.
"""

from __future__ import annotations

from collections.abc import MutableSequence

from llamatel.llama.log.log_line import LogLine
from llamatel.llama.log.log_process import Change, Event

_LEFT_OUT = -2
_MOST_OPEN = 16
_TIMINGS = ("prompt eval time", "eval time", "total time", "draft accept")


class HeadingTimings:
    """Assigns timings to headings. ``events`` gets the requests that are lost."""

    def __init__(self, events: MutableSequence[Event]) -> None:
        self._events = events
        self._open: dict[tuple[int, int], int] = {}
        """Tasks, by process and slot, whose timings follow on separate lines."""
        self._unsure: dict[tuple[int, int], int] = {}
        """The same, if such lines cannot be assigned."""
        self._untimed: dict[tuple[int, int], set[str]] = {}
        """Timings that are still missing."""

    @property
    def open(self) -> bool:
        """Whether timings of a heading may follow."""
        return bool(self._open)

    @property
    def due(self) -> bool:
        """Whether a request's timings are still missing."""
        return bool(self._untimed)

    @staticmethod
    def is_timing(text: str) -> bool:
        """Whether a message without a slot is a timing."""
        return text.lstrip().startswith(_TIMINGS)

    def close(self) -> None:
        """No timings follow the headings so far."""
        self._open.clear()

    def slot_line(self, number: int, slot: int, parts: LogLine) -> tuple[int | None, LogLine]:
        """Record whether timings follow; a request whose timings could not be assigned is lost."""
        place = (number, slot)
        if not parts.slot_message.strip() and parts.task is not None:
            if len(self._unsure) > _MOST_OPEN:
                self._unsure.clear()  # lines are missing
            self._open[place] = parts.task
            self._untimed[place] = {"prompt", "eval"}
        elif place in self._untimed:
            self._open.pop(place, None)
            if parts.slot_message.startswith("stop processing") and self._untimed.pop(place):
                self._events.append(Event(Change.LOST, number, slot=slot))
                return None, parts
        return number, parts

    def timing(self, parts: LogLine) -> tuple[int | None, LogLine]:
        """A timing after its heading, rewritten as a line about the heading's slot."""
        if len(self._open) != 1 or self._unsure:
            # It belongs to one of several requests: drop it, and all of their timings.
            self._unsure.update(self._open)
            for place in self._open:
                self._untimed.setdefault(place, {"prompt", "eval"})
            self._open.clear()
            if parts.text.lstrip().startswith("total time") and self._unsure:
                self._unsure.popitem()
            return None, parts
        [(place, task)] = self._open.items()
        text = parts.text.lstrip()
        if place[0] == _LEFT_OUT:
            return None, parts
        self._untimed.get(place, set()).discard(text.partition(" ")[0])
        if text.startswith("total time"):
            self._open.clear()
        heading = f"slot print_timing: id {place[1]:2d} | task {task} | {text}"
        return place[0], parts._replace(
            text=heading, slot=place[1], task=task, function="print_timing", slot_message=text
        )

    def left_out(self, parts: LogLine) -> None:
        """A line was assigned to no process: then a heading's timings do not belong to another request."""
        if parts.slot is not None and parts.task is not None and parts.task >= 0 and not parts.slot_message.strip():
            self._open[_LEFT_OUT, parts.slot] = parts.task
