"""Assigns the lines of one log to the servers that wrote them, each with its own observed server.

Wrappers of other programs are removed from the lines; the source that a wrapper names (pod, container, unit, compose
service, any prefix) identifies a stream; within a stream, clocks, slots and task numbers identify the server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

from llamatel.llama.log.backlog_clocks import BacklogClocks
from llamatel.llama.log.client_text import ClientText, quoted_from
from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.log.log_contents import LogContents
from llamatel.llama.log.log_line import LogLine, split_line
from llamatel.llama.log.log_process import UNKNOWN, Change, Event, own_slot
from llamatel.llama.log.log_source import Backlog, Batch
from llamatel.llama.log.process_separation import HELD, ProcessSeparation
from llamatel.llama.log.wrapped_lines import WrappedLines
from llamatel.llama.log.wrapper_fields import Carried
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.server_log import ServerLog
from llamatel.outputs.log_once import LogOnce
from llamatel.records import Completion, ServerInfo

_log = logging.getLogger(__name__)

_MOST_STREAMS = 64
_MOST_SERVERS = 256
_LONGEST_LINE = 8192
_COARSE_S = 2.5
"""A timestamp of whole seconds is less exact than the time of reading, unless they differ by more."""
_OTHER_PROCESS = 1000
_SETTLE_S = 0.2
_STEP_S = 1.0
"""The wall clock was set if it moved this much more or less than the monotonic clock between two reads."""
_LOCAL = ("127.0.0.1", "0.0.0.0", "::", "::1", "localhost")  # noqa: S104 - recognised, not bound
_ORDINARY = ("srv          stop: ", "srv    send_error: ", "srv  update_slots: ")
REPLACED = "the server's process was replaced"


class _Stream:
    """The lines of one source."""

    def __init__(self, origin: str, name: str | None) -> None:
        self.origin = origin
        self.name = name
        self.separation = ProcessSeparation()
        self.servers: dict[int, ObservedServer] = {}
        """Servers by process number."""
        self.processes: dict[str, int] = {}
        """Servers by the process id in the wrapper."""
        self.quotations, self.scanned_quotations = ClientText(), ClientText()
        """Client text is no other server's; of lines that are read, and of those that are only dated."""
        self.clocks: BacklogClocks | None = None
        self.wall: float | None = None
        """When the last line with its own date was written."""
        self.first_wall: float | None = None
        """The date of the first line of a backlog that has one: lines before it were not written later."""

    def clock(self, process: str | None) -> int | None:
        """Whose lines are those of another process than the first."""
        if process is None:
            return None
        number = self.processes.get(process)
        if number is None:
            number = len(self.processes)
            if number < _OTHER_PROCESS:  # else further ones share a clock
                self.processes[process] = number
        return _OTHER_PROCESS + number if number else None


class LogStreams:
    """Feeds the lines of one log to their servers. Not thread-safe."""

    def __init__(
        self,
        server: ObservedServer,
        *,
        name: str = "the log",
        added: Callable[[ObservedServer], None] = lambda _: None,
    ) -> None:
        """``server``: the polled server, or the first one found; ``added`` is called for each further one.

        Raises ValueError for a server without a log.
        """
        if server.log is None:
            raise ValueError("the server has no log")
        self.contents = LogContents()
        self._server = server
        self._log = server.log
        self._name = name
        self._added = added
        self._lines = WrappedLines()
        self._streams: dict[str, _Stream] = {}
        self._plain: _Stream | None = None
        """The only stream, if its lines have no wrapper."""
        self._fast = False
        self._requests = False
        """Whether one was read."""
        self._recorded = False
        """Whether the current lines were written before reading started."""
        self._once = LogOnce(_log)
        self._wall_offset = time.time() - time.monotonic()
        self._settled_at = 0.0

    # -- lines --------------------------------------------------------------------------------------------------------

    def read(self, batch: Batch) -> None:
        """Read new lines; a batch without lines means that none arrived for a while."""
        offset = time.time() - time.monotonic()
        if abs(offset - self._wall_offset) > _STEP_S:
            for stream in self._streams.values():
                stream.separation.clock_stepped()
        self._wall_offset = offset
        if not batch.lines:
            for carried in self._lines.flush():
                self._read(carried, batch.at, live=batch.live)
        self._read_lines(batch)
        if (now := time.monotonic()) - self._settled_at > _SETTLE_S:
            self._settled_at = now
            self.settle()

    def settle(self, *, at_once: bool = False) -> None:
        """Publish the requests that were held for lines that did not follow; ``read`` does it now and then."""
        for stream in self._streams.values():
            for number, server in stream.servers.items():
                if server.log is not None and (completed := server.log.settle(at_once=at_once)):
                    self._publish(server, completed, number)

    def _read_lines(self, batch: Batch) -> None:
        lines, position = batch.lines, 0
        while position < len(lines):
            if self._plain is not None and not self._lines.open and (taken := self._read_plain(batch, position)):
                position += taken
                continue
            for carried in self._lines.feed(lines[position]):
                self._read(carried, batch.at, live=batch.live)
            position += 1

    def _read_plain(self, batch: Batch, start: int) -> int:
        """Read ordinary lines of the one server of a log without wrappers; returns how many were read."""
        stream = self._plain
        if (
            not self._fast
            or stream is None
            or stream.quotations.open
            or (server := stream.servers.get(0)) is None
            or (log := server.log) is None
        ):
            return 0
        separation, now = stream.separation, batch.at
        latest = separation.latest(now) if batch.live else float("inf")
        found, last = _ordinary(batch.lines, start, separation.last, latest)
        if not found:
            return 0
        separation.note(last, now)
        completed, read = log.read_all(found, now, learned=lambda: self._learn(stream, server))
        if completed:
            self._publish(server, completed, 0)
        if read < len(found):
            separation.another()
            for line, _ in found[read:]:
                self._feed(stream, line, now, live=batch.live)
        return len(found)

    def read_backlog(self, backlog: Backlog) -> None:
        """Read older lines; ``Backlog`` has the time of the last one."""
        lines = WrappedLines()
        for batch in backlog.scan():
            for line in batch:
                for carried in lines.feed(line):
                    self._scan(carried)
        self._lines = WrappedLines(lines.origins)
        for stream in self._streams.values():
            if stream.clocks is not None:
                stream.clocks.finish(backlog.at if stream.first_wall is None else stream.first_wall)
                if stream.clocks.too_close:
                    stream.separation.another()
        for batch, recorded in backlog.batches():
            self._read_recorded(on=recorded)
            for line in batch:
                for carried in self._lines.feed(line):
                    self._read(carried, backlog.at, live=False)
        self._read_recorded(on=False)
        for stream in self._streams.values():
            stream.clocks = stream.first_wall = None

    def _read_recorded(self, *, on: bool) -> None:
        if self._recorded and not on:
            self.settle(at_once=True)  # an earlier llamatel recorded them when it exited
        self._recorded = on

    def forget(self) -> None:
        """Finish at the log's end: the outcome of requests in flight is unknown."""
        for carried in self._lines.flush():
            self._read(carried, 0.0, live=False)
        for stream in self._streams.values():
            for number, server in stream.servers.items():
                if server.log is not None and (completed := server.log.forget()):
                    self._publish(server, completed, number)
        self._log.forget()

    @property
    def explanation(self) -> str | None:
        """Why no request was read; None if one was."""
        return None if self._requests else self.contents.explanation()

    def _scan(self, carried: Carried) -> None:
        stream = self._stream(carried)
        parts = split_line(carried.text[:_LONGEST_LINE])
        stream.first_wall = carried.wall if stream.first_wall is None else stream.first_wall
        if _quoted(stream.scanned_quotations, carried.text, parts, 0.0) or stream.first_wall is not None:
            return
        if stream.clocks is None:
            stream.clocks = BacklogClocks()
        stream.clocks.add(carried.text, parts)

    def _read(self, carried: Carried, now: float, *, live: bool) -> None:
        stream = self._stream(carried)
        wall = carried.wall
        if wall is not None and live and wall.is_integer() and abs(now - wall) < _COARSE_S:
            wall = None
        clock = stream.clock(carried.process)
        self._feed(stream, carried.text, now, wall=wall, live=live, clock=clock)

    def _feed(
        self,
        stream: _Stream,
        line: str,
        now: float,
        *,
        wall: float | None = None,
        live: bool = True,
        clock: int | None = None,
    ) -> None:
        """Read a line of llama.cpp."""
        parts = split_line(line[:_LONGEST_LINE])
        # In a backlog only the lines that were dated: the time of the others is not known yet.
        if _quoted(stream.quotations, line, parts, now if stream.clocks is None else 0.0):
            self._log.skip()
            return
        if not self._requests:
            self.contents.add(line, parts.time if wall is None else wall)
        if wall is not None:
            now, live = wall, True
            stream.wall = wall
        elif stream.first_wall is not None and stream.wall is not None:
            now = stream.wall  # a line without a date, in a backlog of lines that have one
        elif stream.clocks is not None:
            known, at = stream.clocks.clock(parts)
            clock = known if clock is None else clock
            stream.wall = parts.wall or stream.wall
            now = at or stream.wall or stream.first_wall or now
        separation = stream.separation
        number, parts = separation.route(line, parts, now, dated=wall is not None, live=live, clock=clock)
        while separation.events:
            self._apply(stream, separation.events.popleft())
        if stream is self._plain and (separation.alone and self._requests) is not self._fast:
            self._read_fast(stream, on=not self._fast)
        if number == HELD:
            return
        if number is None:
            self._log.skip()
            return
        server = stream.servers.get(number) or self._new(stream, number)
        if server is None or (log := server.log) is None:
            self._log.skip()
            return
        completed, read = log.read_all([(line, parts)], now, learned=lambda: self._learn(stream, server))
        if not read:
            separation.another()
            self._feed(stream, line, now, wall=wall, live=live, clock=clock)
        elif completed:
            self._publish(server, completed, number)

    def _read_fast(self, stream: _Stream, *, on: bool) -> None:
        """While there is one server, its reader detects another server's lines, so each line is matched once."""
        self._fast = on
        server = stream.servers.get(0)
        if server is None or (log := server.log) is None:
            return
        stream.separation.running = log.running if on else None
        log.watch_for_others(on=on)

    def _publish(self, server: ObservedServer, completed: Sequence[Completion], number: int) -> None:
        self._requests = True
        if self._recorded:
            return
        if number == UNKNOWN:
            # Its server, and what else ran there, is unknown.
            completed = [
                replace(each, slot=None if each.slot is None else own_slot(each.slot), queue_s=None, in_flight=())
                for each in completed
            ]
        server.publish(completed)

    def _apply(self, stream: _Stream, event: Event) -> None:
        server = stream.servers.get(event.process) or self._new(stream, event.process)
        if server is None or (log := server.log) is None:
            return
        if event.change is Change.LINE and event.parts is not None:
            lines = [(event.line, event.parts)]
            completed, _ = log.read_all(lines, event.now, learned=lambda: self._learn(stream, server))
            if completed:
                self._publish(server, completed, event.process)
        elif event.change is Change.LOST:
            log.lose(event.slot)
        elif event.change is Change.REPLACED:
            if completed := log.abort(event.now, REPLACED):
                self._publish(server, completed, event.process)
            log.restart(server.info)
        elif event.change is Change.FORGOTTEN:
            if completed := log.forget():
                self._publish(server, completed, event.process)
            log.restart(server.info)
        if stream.separation.mixed:
            self._once.warning(
                "mixed",
                "%s holds lines of several servers without a mark that distinguishes them: requests that cannot be "
                "assigned count as lost, or as those of an unknown server",
                self._name,
            )

    # -- servers ------------------------------------------------------------------------------------------------------

    def _stream(self, carried: Carried) -> _Stream:
        origin = carried.origin
        stream = self._streams.get(origin)
        if stream is not None:
            return stream
        if len(self._streams) >= _MOST_STREAMS:
            self._once.warning(
                "streams", "%s has more than %d sources: further ones are read as one", self._name, _MOST_STREAMS
            )
            return next(iter(self._streams.values()))
        stream = self._streams[origin] = _Stream(origin, carried.name)
        self._plain = stream if not origin and len(self._streams) == 1 else None
        return stream

    def _new(self, stream: _Stream, number: int) -> ObservedServer | None:
        """The server of a new process; None if there are too many: its lines count as skipped."""
        known = sum(len(each.servers) for each in self._streams.values())
        if known >= _MOST_SERVERS:
            self._once.warning(
                "servers", "%s has lines of more than %d servers: those of further ones are skipped", self._name, known
            )
            return None
        if not known and number != UNKNOWN:
            server = self._server
        else:
            info = ServerInfo("unknown", labels=self._server.info.own_labels)
            server = ObservedServer(info, log=ServerLog(info, LogClock()))
            server.blocking = self._server.blocking
            self._added(server)
            if self._server.url is not None:
                self._once.warning(
                    "several", "%s holds lines of several servers: only %s is polled", self._name, self._server.url
                )
        stream.servers[number] = server
        return server

    def _learn(self, stream: _Stream, server: ObservedServer) -> None:
        """Update a server's identity from its log. Called within ``ServerLog.read``."""
        if server.log is None:
            return
        if server is self._server and server.url is not None:
            server.learn_from_log()
            return
        logged, info = server.log.logged, server.info
        if logged.host is not None:
            address = stream.name if stream.name is not None and logged.host in _LOCAL else logged.host
            if self._taken(address, logged.port, server):
                address = stream.origin or address
            info = replace(info, address=address, port=logged.port)
        if logged.model_path is not None and not server.is_router:
            info = replace(info, model=logged.model_path.rpartition("/")[2])
        if logged.build is not None:
            info = replace(info, build=logged.build)
        if info != server.info:
            server.info = info
            server.log.identify_unlocked(info)

    def _taken(self, address: str, port: int | None, server: ObservedServer) -> bool:
        """Whether another source of the log has the same address."""
        return any(
            (other.info.address, other.info.port) == (address, port)
            for stream in self._streams.values()
            for other in stream.servers.values()
            if other is not server
        )


def _quoted(text: ClientText, line: str, parts: LogLine, now: float) -> bool:
    """Whether a line is client text that llama.cpp quotes."""
    text.stamped |= parts.time is not None and not text.open
    return (parts.slot is None or text.open) and text.contains(line, now)


def _ordinary(
    lines: Sequence[str], start: int, earliest: float, latest: float
) -> tuple[list[tuple[str, LogLine]], float]:
    """Lines that are certainly of the known process, parsed, and their last timestamp.

    They are llama.cpp's own, with ascending timestamps between ``earliest`` and ``latest``, and do not concern the
    process itself.
    """
    found: list[tuple[str, LogLine]] = []
    last = 0.0
    for line in islice(lines, start, None):
        parts = split_line(line)
        text, time, _, child, wall, slot, _, _, message = parts
        if child is not None or (slot is None and quoted_from(line) is not None):
            break
        if time is None:
            if wall is not None or not (message or text.startswith(_ORDINARY)):
                break
        elif not earliest <= time <= latest or (
            not message and (slot is not None or "listening on " in text or "n_slots = " in text)
        ):
            break
        else:
            last = earliest = time
        found.append((line, parts))
    return found, last
