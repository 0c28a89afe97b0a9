"""llama.cpp's log turned into Completions.

One LogReader follows one server. It is fed line by line and keeps no text beyond the requests in flight. The shapes of
the lines are those of llama.cpp from November 2025 to October 2026 (tools/server/server-context.cpp, server-queue.cpp;
``tests/golden`` holds recordings). At the default verbosity a request prints::

    slot launch_slot_: id  3 | task 0 | processing task, is_child = 0
    slot print_timing: id  3 | task 0 | prompt eval time =       0.59 ms /    13 tokens (...
    slot print_timing: id  3 | task 0 |        eval time =       2.15 ms /    20 tokens (...
    slot      release: id  3 | task 0 | stop processing: n_tokens = 32, truncated = 0

A cancelled or failed one prints ``stop: cancel task, id_task = 0`` or ``send_error: task id = 0, error: ...`` and no
timings.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from llamatel.llama.log.call_line import LLAMA_CPP_PYTHON, MARK, read_call_line
from llamatel.llama.log.client_text import ClientText
from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.log.log_line import LogLine, split_line
from llamatel.llama.log.logged_request import LoggedRequest
from llamatel.llama.log.logged_server import LoggedServer, learn
from llamatel.llama.log.queue_clock import DEFAULT_BATCH, QueueClock
from llamatel.llama.log.router_log import RouterLog
from llamatel.records import Completion, Outcome, ServerInfo
from llamatel.snapshots import LogCounts

_log = logging.getLogger(__name__)

# Numbers have no more digits than llama.cpp's can have: a log may hold anybody's text.
_RELEASE = re.compile(r"stop processing: (?:n_tokens|n_past) = (\d{1,12}), truncated = (\d)")
_ERROR = re.compile(r"send_error: task id = (\d{1,12}), error: (.*)", re.DOTALL)
_CANCEL = re.compile(r"stop: cancel task, id_task = (\d{1,12})\b")
_LONGEST = 8192
"""Characters of a line that are looked at: some patterns take the square of it."""
_TOO_LONG = "exceeds the available context size"
_OURS = ("srv ", "slot ", "que ", "cmn ")


@dataclass(slots=True)
class _Tally:
    lines: dict[str, int] = field(default_factory=lambda: {"request": 0, "server": 0, "other": 0, "malformed": 0})
    started: int = 0
    lost: int = 0
    untimed: int = 0
    timed: int = 0
    shifts: int = 0
    activity: int = 0


class LogReader:
    """Follows one server's log. Not thread-safe: one thread feeds it."""

    def __init__(self, server: ServerInfo, clock: LogClock | None = None, *, tally: _Tally | None = None) -> None:
        self.server = server
        """Whose the next Completions are; the owner replaces it as more becomes known."""
        self.logged_server = LoggedServer()
        self._clock = clock or LogClock()
        self._batch = DEFAULT_BATCH
        self._queue = QueueClock()
        self._active: dict[int, LoggedRequest] = {}
        self._chosen: dict[int, float] = {}
        """When each slot was last chosen for a task."""
        self._last_time = 0.0
        self._stamped = False
        """Whether llama.cpp's lines carry times; then one without is a continuation or comes from elsewhere."""
        self._continued: int | None = None
        self._tally = tally or _Tally()
        self._failed = False
        self._client_text = ClientText()
        self.router: RouterLog[LogReader] = RouterLog(lambda: LogReader(self.server, tally=self._tally))
        """What the log says of a router's models, if it is one's."""
        self._counted_from: float | None = None
        self._generated_before = 0.0
        """llama.cpp's count at the look before."""

    # -- reading ----------------------------------------------------------------------------------------------------

    def feed(self, line: str, now: float) -> Sequence[Completion]:
        """Read one line (without its line end) at Unix time ``now``; the requests that ended with it, mostly none."""
        if line.startswith(MARK) and self.server.backend == LLAMA_CPP_PYTHON:
            return self._call(line, now)
        try:
            if self._client_text.holds(line, now):
                self._tally.lines["other"] += 1
                return ()
            parts = split_line(line[:_LONGEST])
            if parts.child is not None:
                return self._feed_child(parts, now)
            return self._feed(parts, now)
        except Exception:  # noqa: BLE001 - the boundary to text that anybody may have written
            if not self._failed:
                _log.exception("a line of the server's log could not be read; further ones are only counted")
            self._failed = True
            self._tally.lines["malformed"] += 1
            return ()

    def _call(self, line: str, now: float) -> Sequence[Completion]:
        completion = read_call_line(line, self.server)
        self._tally.lines["malformed" if completion is None else "request"] += 1
        if completion is None:
            return ()
        self._tally.started += 1
        if completion.prefill_s is not None:
            self._tally.timed += 1
        return (completion,)

    def _feed(self, parts: LogLine, now: float) -> Sequence[Completion]:
        ended: list[Completion] = []
        if parts.wall is not None:
            now = parts.wall
        if parts.time is None:
            # Unstamped: as old as the stamped line before it; in a log without stamps, dated by the clock on the wall.
            start = self._clock.process_started_at
            time = self._last_time if self._stamped or start is None else max(self._last_time, now - start)
        else:
            time = parts.time
            self._stamped = True
            if time < self._last_time - 1.0:
                ended.extend(self.abort(now, "the server's process was replaced"))
                self._clock.restart()
                self._queue = QueueClock(self._batch)
        if parts.time is not None or self._clock.process_started_at is None:
            self._clock.observe(time, now)
        self._last_time = time
        kind = self._read(parts, time, ended)
        self._tally.lines[kind] += 1
        return ended

    def _feed_child(self, parts: LogLine, now: float) -> Sequence[Completion]:
        port = parts.child
        if port is None or not parts.text:
            self._tally.lines["other"] += 1
            return ()
        reader = self.router.child(port, self.server)
        ended = reader.feed(parts.text, now) if parts.time is None else reader._feed(parts._replace(child=None), now)
        self.router.heard(port, reader, parts.time)
        return ended

    def _read(self, parts: LogLine, time: float, ended: list[Completion]) -> str:
        """Act on a line; returns its kind."""
        text, slot, task = parts.text, parts.slot, parts.task
        if slot is not None and task is not None:
            self._continued = None
            self._tally.activity += 1
            return self._slot_line(slot, task, parts.said, time, ended)
        if self._continued is not None and self._continuation(text, time):
            return "request"
        if "task" in text:
            found = _CANCEL.search(text)
            if found is not None:
                self._cancel(int(found.group(1)), time)
                return "request"
            found = _ERROR.search(text)
            if found is not None:
                request = self._by_task(int(found.group(1)))
                if request is not None:
                    request.error = found.group(2).strip()
                return "request"
        return self._server_line(text, parts, ended)

    def _slot_line(self, slot: int, task: int, text: str, time: float, ended: list[Completion]) -> str:
        if text.startswith("processing task"):
            self._launch(slot, task, time, is_child=text.rstrip().endswith("is_child = 1"), ended=ended)
            return "request"
        if text.startswith("selected slot"):
            self._chosen[slot] = time
            return "request"
        request = self._active.get(slot)
        if request is None or request.task != task:
            # A request that began before we read; without its beginning there is nothing true to say about it.
            if text.startswith("stop processing"):
                self._queue.left(time)
            return "server"
        if text.startswith("stop processing"):
            return self._release(request, text, time, ended)
        shifts = request.shifts
        kind = request.read(text, time)
        self._tally.shifts += request.shifts - shifts
        if not text:
            self._continued = slot
        return kind

    def _continuation(self, text: str, time: float) -> bool:
        """Until spring 2026 the timings followed their heading on lines of their own; foreign lines may lie between."""
        request = self._active.get(self._continued) if self._continued is not None else None
        stripped = text.lstrip()
        if request is None or not stripped.startswith(("prompt eval time", "eval time", "total time", "draft accept")):
            return False
        request.read(stripped, time)
        return True

    # -- what lines mean --------------------------------------------------------------------------------------------

    def _launch(self, slot: int, task: int, time: float, *, is_child: bool, ended: list[Completion]) -> None:
        lost = self._active.pop(slot, None)
        if lost is not None:
            self._tally.lost += 1
            self._queue.broken_off(lost.task, time, 0)
        chosen = self._chosen.pop(slot, time)
        self._queue.launched(task, time, chosen=chosen, idle=not self._active)
        self._active[slot] = LoggedRequest(slot, task, time, is_child=is_child)
        self._tally.started += 1

    def _release(self, request: LoggedRequest, text: str, time: float, ended: list[Completion]) -> str:
        found = _RELEASE.match(text)
        del self._active[request.slot]
        request.queue_s = self._waited(request, time, int(found.group(1)) if found is not None else 0)
        if found is None:
            self._tally.lost += 1
            return "malformed"
        ended.append(self._completion(request, time, tokens=int(found.group(1)), truncated=found.group(2) != "0"))
        return "request"

    def _waited(self, request: LoggedRequest, time: float, tokens: int) -> float | None:
        """How long a request that releases its slot had waited for it."""
        if request.timed_at is not None and request.decode_s is not None and request.generated is not None:
            return self._queue.completed(
                request.task,
                time,
                first_token=request.timed_at - request.decode_s,
                steps=max(0, request.generated - 1 - (request.draft_accepted or 0)),
                computed=request.computed or 0,
            )
        if request.error is not None and _TOO_LONG in request.error:
            return self._queue.refused(request.task, time)
        return self._queue.broken_off(request.task, time, tokens)

    def _cancel(self, task: int, time: float) -> None:
        self._queue.number_taken(time)
        request = self._by_task(task)
        if request is not None:
            request.cancelled = True
        else:
            self._queue.seen(task)

    def _by_task(self, task: int) -> LoggedRequest | None:
        return next((request for request in self._active.values() if request.task == task), None)

    def _completion(
        self, request: LoggedRequest, time: float, *, tokens: int | None = None, truncated: bool | None = None
    ) -> Completion:
        completion = request.completion(
            self.server,
            time,
            wall=self._clock.wall,
            tokens=tokens,
            truncated=truncated,
            others=[other for other in self._active.values() if other is not request],
        )
        if completion.outcome is Outcome.OK:
            if completion.prefill_s is None:
                self._tally.untimed += 1
            else:
                self._tally.timed += 1
        return completion

    def _server_line(self, text: str, parts: LogLine, ended: list[Completion]) -> str:
        if parts.time is None and self._stamped and ('"' in text or "\\" in text):
            return "other"  # another library's line, which quotes what a client sent
        facts = learn(self.logged_server, text)
        if facts is not None:
            self.logged_server = facts
            return "server"
        if self.router.read(text):
            for reader in self.router.take_ended():
                ended.extend(reader.abort(self._clock.wall(self._last_time), "the model's process ended"))
        elif "purging slot" in text:
            self._tally.activity += 1
        return "server" if text.startswith(_OURS) or parts.level is not None else "other"

    # -- the reader's own state -------------------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """Requests that hold a slot at this moment."""
        return len(self._active) + sum(reader.busy for reader in self.router)

    @property
    def activity(self) -> int:
        """Lines that tell of something done to slots: while this stays, what idle slots hold stays.

        Not told is only what goes through ``/slots/ID?action=`` (--slot-save-path).
        """
        return self._tally.activity

    @property
    def context_shifts(self) -> int:
        """Times a request lost a part of its context."""
        return self._tally.shifts

    @property
    def process_started_at(self) -> float | None:
        """Unix time at which the process began to log; None before its first line."""
        return self._clock.process_started_at

    def date(self, time: float, now: float) -> None:
        """A line with log time ``time`` was written at Unix time ``now``; for lines that are read late."""
        self._clock.observe(time, now)

    def polled(self) -> None:
        """We asked the server for something that takes a task number (/metrics, /slots)."""
        self._queue.number_taken(self._last_time)

    def abort(self, now: float, error: str) -> list[Completion]:
        """The server is gone: every request in flight ends at ``now`` as an error."""
        ended = []
        for reader in self.router:
            ended.extend(reader.abort(now, error))
        start = self._clock.process_started_at
        for request in self._active.values():
            time = self._last_time if start is None else now - start
            request.error = error
            request.queue_s = self._queue.broken_off(request.task, time, 0)
            ended.append(self._completion(request, time))
        self._active.clear()
        self._chosen.clear()
        self._continued = None
        self._last_time = 0.0
        self._queue = QueueClock(self._batch)
        return ended

    def forget(self) -> None:
        """The log ends here: how the requests in flight went on will not be known."""
        self._tally.lost += self.busy
        self._active.clear()
        self.router.restart()
        self._queue = QueueClock(self._batch)

    def restart(self, *, batch: int | None = None) -> None:
        """The next line comes from a new process, whose ``--batch-size`` is this (None: the default)."""
        self._batch = batch or DEFAULT_BATCH
        self._queue = QueueClock(self._batch)
        self._clock.restart()
        self.logged_server = LoggedServer()
        self.router.restart()

    def counts(self, generated_total: float | None = None) -> LogCounts:
        """What was read so far; ``generated_total`` is llama.cpp's own token counter, where it can be had.

        The log counts as not understood once llama.cpp generated tokens while we read and the log showed no request,
        or showed requests end well without a single timing. Tokens count from the second look on: the lines of those
        that are new may be on their way.
        """
        tally = self._tally
        understood: bool | None = True if tally.timed else None
        if generated_total is not None:
            if self._counted_from is None:
                self._counted_from = 0.0 if tally.started else generated_total
            elif generated_total < self._counted_from:
                self._counted_from = 0.0
            seen_before = min(generated_total, self._generated_before)
            self._generated_before = generated_total
            if seen_before > self._counted_from and not tally.timed and (not tally.started or tally.untimed):
                understood = False
        return LogCounts(
            lines=dict(tally.lines), requests_started=tally.started, requests_lost=tally.lost, understood=understood
        )
