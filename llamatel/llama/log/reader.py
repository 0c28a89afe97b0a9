"""Converts llama.cpp's log to Completions.

One LogReader follows one server. It is fed line by line and keeps no text beyond the requests in flight. The messages
are those of llama.cpp from November 2025 to October 2026 (tools/server/server-context.cpp, server-queue.cpp;
``tests/golden`` holds recordings). At the default verbosity a request prints::

    slot launch_slot_: id  3 | task 0 | processing task, is_child = 0
    slot print_timing: id  3 | task 0 | prompt eval time =       0.59 ms /    13 tokens (...
    slot print_timing: id  3 | task 0 |        eval time =       2.15 ms /    20 tokens (...
    slot      release: id  3 | task 0 | stop processing: n_tokens = 32, truncated = 0

A cancelled or failed one prints ``stop: cancel task, id_task = 0`` or ``send_error: task id = 0, error: ...`` and no
timings. Messages are matched from their start, by the function that printed them: quoted client text is used only
for rejected requests (``rejections``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from llamatel.flags.server_settings import ServerSettings
from llamatel.llama.log.call_groups import RERANK, CallGroups
from llamatel.llama.log.client_text import ClientText
from llamatel.llama.log.jsonl_record import FRAGMENTS, is_unused, parse_record
from llamatel.llama.log.log_audit import LogAudit
from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.log.log_counters import LogCounters
from llamatel.llama.log.log_line import LogLine, split_line
from llamatel.llama.log.logged_request import LoggedRequest
from llamatel.llama.log.logged_server import LoggedServer, learn
from llamatel.llama.log.placement import reports_no_gpu
from llamatel.llama.log.rejections import rejection
from llamatel.llama.log.router_log import RouterLog
from llamatel.llama.log.server_output import LineKind, OutputLines
from llamatel.llama.log.slot_requests import ForeignLine, SlotRequests
from llamatel.records import Completion, Outcome, ServerInfo
from llamatel.snapshots import LogCounts, SlotState

_log = logging.getLogger(__name__)

_MAX_LENGTH = 8192
"""Characters of a line that are read."""
_OURS = ("srv ", "slot ", "que ", "cmn ")
_TOTALS = (
    "prompt_tokens_total", "prompt_tokens_cached_total", "tokens_predicted_total", "prompt_seconds_total",
    "tokens_predicted_seconds_total",
)  # fmt: skip
"""llama.cpp's counters that requests add up to."""
_JUMP_S = 2.0
"""A timestamp further ahead of the previous line's is checked against the clock."""


class LogReader:
    """Follows one server's log. Not thread-safe: one thread feeds it."""

    def __init__(
        self,
        server: ServerInfo,
        clock: LogClock | None = None,
        *,
        supervised: bool = False,
        counters: LogCounters | None = None,
    ) -> None:
        """``supervised``: the owner knows when the server's process is replaced and calls ``restart``."""
        self.server = server
        """The server of the next Completions; the owner replaces it as more becomes known."""
        self.logged_server = LoggedServer()
        self._supervised = supervised
        self._clock = clock or LogClock()
        self._counters = counters or LogCounters()
        self._audit = LogAudit(self._counters.contradictions, supervised=supervised)
        self._requests = SlotRequests(self._counters, self._audit, self._on_end)
        self._calls = CallGroups()
        self.reranks = False
        """Whether the server's flags make it rerank."""
        self._completed: list[Completion] = []
        """Of the line that is being read."""
        self._totals = dict.fromkeys(_TOTALS, 0.0)
        self._last_time = 0.0
        self._stamped = False
        """Whether llama.cpp's lines have timestamps; then one without is a continuation or another program's."""
        self._failed = False
        self._client_text = ClientText()
        self.router: RouterLog[LogReader] = RouterLog(self._child_reader)
        """What was logged of a router's models, if it is one."""

    # -- reading ----------------------------------------------------------------------------------------------------

    def feed(self, line: str, now: float, parts: LogLine | None = None) -> Sequence[Completion]:
        """Read one line of text (without its line end) at Unix time ``now``; return the requests that it finished.

        ``parts``: the line, where it was parsed already. Raises ForeignLine after ``watch_for_others``.
        """
        try:
            if len(line) > _MAX_LENGTH:
                line = line[:_MAX_LENGTH]
            if parts is None:
                parts = split_line(line)
            self._client_text.stamped = self._stamped
            if (parts.slot is None or self._client_text.open) and self._client_text.contains(line, now):
                self._counters.lines["other"] += 1
                return ()
            return self._read(parts, now)
        except ForeignLine:
            raise
        except Exception:  # noqa: BLE001 - the boundary to text from outside
            return self._read_failed()

    def feed_records(self, lines: Sequence[str], now: float) -> list[Completion]:
        """Read lines of a stream that carries only ``--log-jsonl`` records; anything else in it counts as other."""
        completed: list[Completion] = []
        for line in lines:
            try:
                if is_unused(line):  # two of seven lines
                    self._counters.slot_lines += 1
                    self._counters.lines["request"] += 1
                    continue
                parts = parse_record(line)
                if parts is None:
                    self.skip()
                elif parts.level in FRAGMENTS:
                    completed += self._read_fragment(parts, now)
                elif finished := self._read(parts, now):
                    completed += finished
            except Exception:  # noqa: BLE001 - the boundary to text from outside
                self._read_failed()
        return completed

    def feed_output(self, output: OutputLines, now: float) -> list[Completion]:
        """Read lines that a launched server wrote; output other than its log only adds to ``logged_server``."""
        kind, lines = output
        if kind is LineKind.RECORD:
            return self.feed_records(lines, now)
        if kind is LineKind.TEXT:
            return [completion for line in lines for completion in self.feed(line, now)]
        for line in filter(reports_no_gpu, lines if kind is LineKind.STARTUP else ()):
            self.logged_server = learn(self.logged_server, line[:_MAX_LENGTH]) or self.logged_server
        self.skip(len(lines))
        return []

    def skip(self, lines: int = 1) -> None:
        """Count lines that are not part of this log."""
        self._counters.lines["other"] += lines

    def _read_failed(self) -> Sequence[Completion]:
        if not self._failed:
            _log.exception("a line of the server's log could not be read; further ones are only counted")
        self._failed = True
        self._counters.lines["malformed"] += 1
        self._completed = []
        return ()

    def _read_fragment(self, parts: LogLine, now: float) -> Sequence[Completion]:
        """A record that is not llama.cpp's own message: a router forwards its children's lines in such records."""
        if self.router.seen and parts.text.startswith("["):
            return self.feed(parts.text, now)
        self._counters.lines["server"] += 1
        return ()

    def _read(self, parts: LogLine, now: float) -> Sequence[Completion]:
        text, stamp, _, child, wall, slot, task, function, message = parts  # faster than by name, for every line
        if child is not None:
            return self._read_child(parts, now)
        if wall is not None:
            now, self._requests.written_apart = wall, True
        last, time, clock = self._last_time, stamp, self._clock
        if time is None or not last <= time <= last + _JUMP_S:
            time = self._time_of(stamp, now)
            if time is None:
                self._counters.lines["other"] += 1
                return ()
        else:
            self._stamped = True
        if now == clock.read_at and clock.oldest < time <= clock.newest:
            pass  # as most lines: it shows nothing new of the clock
        elif stamp is not None or clock.process_started_at is None:
            clock.observe(time, now)
        self._last_time = time
        if self._requests.written_apart:
            self._requests.finish_released(time)
        if slot is not None and task is not None:
            kind = self._requests.slot_line(function, slot, task, message, time)
        else:
            kind = self._message(text, parts, time)
        self._counters.lines[kind] += 1
        if not self._completed:
            return ()
        completed, self._completed = self._completed, []
        return completed

    def _time_of(self, time: float | None, now: float) -> float | None:
        """The log time of a line with this timestamp; None if it is impossible."""
        if time is None:
            # No timestamp: as old as the previous timestamp; in a log without any, dated by our own clock.
            start = self._clock.process_started_at
            return self._last_time if self._stamped or start is None else max(self._last_time, now - start)
        self._stamped = True
        if time > self._last_time + _JUMP_S and self._audit.is_future(time):
            return None
        if time < self._last_time - 1.0 and not self._supervised and not self._clock.set_back():
            self._completed.extend(self.abort(now, "the server's process was replaced"))
            self._clock.restart()
            self._audit.restart()
        return time

    def _read_child(self, parts: LogLine, now: float) -> Sequence[Completion]:
        port = parts.child
        if port is None or not parts.text or not self._may_be_router:
            self._counters.lines["other"] += 1
            return ()
        reader = self.router.child(port, self.server)
        completed = (
            reader.feed(parts.text, now) if parts.time is None else reader._read(parts._replace(child=None), now)
        )
        self.router.child_line(port, reader, parts.time)
        return completed

    def _child_reader(self, start_logged: bool) -> LogReader:
        return LogReader(self.server, supervised=start_logged, counters=self._counters)

    # -- messages ---------------------------------------------------------------------------------------------------

    def _message(self, text: str, parts: LogLine, time: float) -> str:
        """Act on a message that is not about a slot; returns the line's kind."""
        function = text[:19]
        if function == "srv          stop: ":
            return self._requests.cancel(text[19:], time)
        if function == "srv    send_error: ":
            return self._requests.error(text[19:])
        if function == "srv    operator(): " and (reason := rejection(text[19:])) is not None:
            self._counters.reject(reason)
            return "server"
        if self._requests.continuation(text, time):
            return "request"
        return self._server_message(text, parts)

    def _server_message(self, text: str, parts: LogLine) -> str:
        if parts.time is None and self._stamped and ('"' in text or "\\" in text):
            return "other"  # another library's line, which quotes what a client sent
        updated = learn(self.logged_server, text)
        if updated is not None:
            self._learned(updated)
            return "server"
        if self._may_be_router and self.router.read(text):
            for reader in self.router.pop_disconnected():
                now = self._clock.wall(self._last_time)
                self._completed.extend(reader.abort(now, "the model's process ended"))
        elif text.startswith("srv ") and ("purging slot" in text or "cache" in text):
            self._cache_message(text[19:].lstrip(" -"))
        return "server" if text.startswith(_OURS) or parts.level is not None else "other"

    def _learned(self, server: LoggedServer) -> None:
        history, before = self._requests.history, self.logged_server
        if server.sleeping and not before.sleeping:
            history.clear()
        history.complete = server.slots is not None
        history.unified = server.kv_unified
        if server.reported.get("recurrent"):
            history.rewindable = False
        self.logged_server = server
        self._audit.configured(server.slots)

    def _cache_message(self, message: str) -> None:
        if message.startswith("purging slot"):
            self._counters.slot_lines += 1
        self._requests.history.read(message)

    @property
    def _may_be_router(self) -> bool:
        """Whether it is a router: logged before it listens; later in a log that is read from its middle."""
        return self.router.seen or not self._supervised or self.logged_server.host is None

    def _on_end(
        self, request: LoggedRequest, time: float, *, tokens: int | None = None, truncated: bool | None = None
    ) -> None:
        others = [other for other in self._requests if other is not request]
        completion = request.completion(
            self.server,
            time,
            wall=self._clock.wall,
            tokens=tokens,
            truncated=truncated,
            others=others,
            history=self._requests.history,
        )
        if completion.outcome is Outcome.OK:
            if completion.prefill_s is None:
                self._counters.untimed += 1
            else:
                self._counters.timed += 1
                self._audit.generated += completion.generated or 0
        self._add(completion)
        if completion.prefill_s is None and (operation := self._operation) is not None:
            self._completed += self._calls.finished(completion, self._starts(others), operation)
        else:
            self._completed.append(completion)

    @property
    def _operation(self) -> str | None:
        """The operation of calls that are several tasks; None: each task is a request."""
        return RERANK if self.reranks else self.logged_server.operation

    def _starts(self, requests: Iterable[LoggedRequest]) -> dict[int, float]:
        return {request.task: self._clock.wall(request.started) for request in requests}

    @property
    def holds(self) -> bool:
        """Whether calls are held until they are complete; then ``settle`` is to be called."""
        return bool(self._calls) or any(reader.holds for reader in self.router)

    def settle(self, *, at_once: bool = False) -> list[Completion]:
        """The calls that are complete as no line of theirs has followed for a moment, or ``at_once``."""
        completed = [completion for reader in self.router for completion in reader.settle(at_once=at_once)]
        if self._calls:
            completed += self._calls.settle(self._starts(self._requests), self._operation or RERANK, at_once=at_once)
        return completed

    def _add(self, completion: Completion) -> None:
        """Add a request to llama.cpp's counters as this log has them."""
        totals = self._totals
        totals["prompt_tokens_total"] += completion.prompt_computed or 0
        totals["prompt_tokens_cached_total"] += completion.prompt_cached or 0
        totals["tokens_predicted_total"] += completion.generated or 0
        totals["prompt_seconds_total"] += completion.prefill_s or 0.0
        totals["tokens_predicted_seconds_total"] += completion.decode_s or 0.0

    # -- the reader's own state -------------------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """Requests that hold a slot at this moment."""
        return len(self._requests) + sum(reader.busy for reader in self.router)

    @property
    def totals(self) -> Mapping[str, float]:
        """llama.cpp's counters as sums over this process's requests; empty if the log was contradicted."""
        return {} if any(self._counters.contradictions.values()) else dict(self._totals)

    @property
    def activity(self) -> int:
        """Lines that report changes of slots: while this does not change, the content of idle slots does not.

        Not logged is only what goes through ``/slots/ID?action=`` (--slot-save-path).
        """
        return self._counters.slot_lines

    @property
    def context_shifts(self) -> int:
        """Times a request lost a part of its context."""
        return self._counters.context_shifts

    @property
    def process_started_at(self) -> float | None:
        """Unix time at which the process started to log; None before its first line."""
        return self._clock.process_started_at

    def polled(self) -> None:
        """Count a poll that uses a task number (/metrics, /slots)."""
        self._requests.number_taken(self._last_time)

    def describe_cache(self, *, rewindable: bool | None, settings: ServerSettings | None) -> None:
        """Whether the model's KV cache can be cut anywhere, and the server's flags; None: not known."""
        history = self._requests.history
        if not self.logged_server.reported.get("recurrent"):
            history.rewindable = rewindable
        if settings is not None:
            self.reranks = settings.reranks
            history.host_cache, history.checkpoints = settings.cache_ram_mib != 0, settings.ctx_checkpoints != 0

    def abort(self, now: float, error: str) -> list[Completion]:
        """The server exited: every request in flight fails at ``now``."""
        completed = [completion for reader in self.router for completion in reader.abort(now, error)]
        start = self._clock.process_started_at
        before, self._completed = self._completed, []
        self._requests.abort(self._last_time if start is None else now - start, error)
        completed += self._completed + self._calls.flush(self._operation or RERANK)
        self._completed = before
        self._last_time = 0.0
        return completed

    @property
    def running(self) -> dict[int, int]:
        """The tasks in flight, by slot."""
        return {request.slot: request.task for request in self._requests}

    @property
    def newest_task(self) -> int:
        """The highest number of a task that was launched."""
        return self._requests.newest_task

    def watch_for_others(self, *, on: bool) -> None:
        """Raise ForeignLine where a line shows that another server writes into the same log."""
        self._requests.watch_for_others(on=on)

    def lose(self, slot: int) -> None:
        """Stop following the request in this slot; a negative slot: a request that was not read at all."""
        if slot < 0:
            self._counters.started += 1
        if slot < 0 or self._requests.drop(slot):
            self._counters.lost += 1

    def forget(self) -> list[Completion]:
        """Finish reading; returns the requests that were held. The outcome of those in flight is unknown."""
        completed = [completion for reader in self.router for completion in reader.forget()]
        self._requests.finish_released()
        completed += self._completed
        self._completed = []
        running = self._starts(self._requests)
        lost = len(running)
        if (operation := self._operation) is not None:
            calls, lost = self._calls.forget(running, operation)
            completed += calls
        self._counters.lost += lost
        self._requests.reset()
        self.router.restart()
        return completed

    def restart(self, *, batch: int | None = None) -> None:
        """Reset for a new process with this ``--batch-size`` (None: the default)."""
        self._requests.reset(batch)
        self._calls = CallGroups()
        self._clock.restart()
        self._audit.restart()
        self._last_time = 0.0
        self.logged_server = LoggedServer()
        self.router.restart()

    def audit(self, generated_total: float | None, slots: Sequence[SlotState] | None) -> None:
        """Compare the log with llama.cpp's current token counter and slots."""
        self._audit.compare(generated_total, slots)
        for slot in slots or ():
            if not slot.busy and slot.context_tokens == 0:
                self._requests.history.polled_empty(slot.id, slot.task)

    def counts(self, generated_total: float | None = None) -> LogCounts:
        """What was read so far; see ``LogCounters.snapshot``."""
        return replace(self._counters.snapshot(generated_total), names_limited=self.router.names_dropped)
