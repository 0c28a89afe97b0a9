"""The current state and recent history of all servers: the data of the web page and ``llamatel top``.

History is kept in bounded rings. No prompt or answer text is included.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamatel.flags.parse import given_flags
from llamatel.gpu.ceilings import Ceilings, server_ceilings
from llamatel.plan.attention_kind import attention_summary
from llamatel.records import FAILED, Completion, ServerInfo, ServerKey
from llamatel.snapshots import DeviceSnapshot, ServerSnapshot, Snapshot
from llamatel.ui.alarms import Alarm, Alarms, forget_removed
from llamatel.ui.objectives import Objectives
from llamatel.ui.request_speed import request_speed
from llamatel.ui.request_statistics import Figures, RequestStatistics, Summary

VERSION = 4
"""Version of the document; incremented by changes that readers have to know."""

_POINTS = 600
_SPACING_S = 1.0
"""Least time between two points: 600 points cover ten minutes or more."""
_REQUESTS = 100
"""Requests kept for all servers together. In addition each server keeps its last ``_OWN``."""
_OWN = 50
_FOLLOWED = 24
"""New requests per update: the page shows no more."""
_ALARMS = 20
_SERVERS = 256
"""Above this number, servers that are no longer watched are dropped."""
_KEPT = 2000
"""Requests that percentiles are computed from."""
_FRESH_S = 5.0
"""Maximum age of percentiles in the overview: with many busy servers they cost the most."""
_LONGEST_LABELS = 200
_WARNED_S = 600.0
"""How long an alarm marks its server in the overview."""


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """One server's values at one time."""

    at: float
    active: int | None
    cached: int | None
    busy: int | None
    deferred: int | None
    decode_rate: float | None


_Request = tuple[int, Completion, "str | None"]
"""Its sequence number, and its trace id."""


class _History:
    """History of one server."""

    def __init__(self) -> None:
        self.points: deque[tuple[int, Point]] = deque(maxlen=_POINTS)
        self.requests: deque[_Request] = deque(maxlen=_OWN)
        self.statistics = RequestStatistics(keep=_KEPT)
        self._summary, self._summary_at = self.statistics.summary(), float("-inf")
        self.down_since: float | None = None
        self.row: dict[str, Any] | None = None
        """Its row of the overview, and the sequence number of the row's last change."""
        self.row_number = 0

    def summary(self, at: float, *, fresh_s: float = 0.0) -> Summary:
        """Summary of its requests; computed again if one finished since, at most every ``fresh_s`` seconds."""
        if self._summary.requests != self.statistics.requests and not 0 <= at - self._summary_at < fresh_s:
            self._summary, self._summary_at = self.statistics.summary(), at
        return self._summary


class Live:
    """Current state and recent history. A sink; ``observe`` receives each snapshot. Thread-safe."""

    def __init__(self, about: Mapping[str, str | None] | None = None, objectives: Objectives | None = None) -> None:
        """``about``: llamatel's version, metrics URL and OTLP endpoint."""
        self._about = dict(about or {})
        self._lock = threading.Lock()
        self._alarms = Alarms(objectives)
        self._logged: deque[tuple[float, Alarm]] = deque(maxlen=_ALARMS)
        self._listeners: tuple[Callable[[Alarm], None], ...] = ()
        self._requests: deque[_Request] = deque(maxlen=_REQUESTS)
        # Sequence numbers start above those of any earlier process, so that a cursor is valid in one process only.
        self._first = self._number = int(time.time() * 1000)
        self._past: dict[ServerKey, _History] = {}
        self._keys: list[str] = []
        self._keys_number = 0
        self._tally = RequestStatistics(keep=_KEPT)

    def on_alarm(self, listener: Callable[[Alarm], None]) -> None:
        """Call ``listener`` for each new alarm, on the thread of the snapshot."""
        self._listeners = (*self._listeners, listener)

    def __call__(self, completion: Completion, trace_id: str | None = None) -> None:
        """Record a finished request."""
        self._alarms.record(completion)
        figures = Figures.of(completion)
        self._tally.add(figures)
        with self._lock:
            remembered = (self._next(), completion, trace_id)
            past = self._of(completion.server.key)
            self._requests.append(remembered)
            past.requests.append(remembered)
        past.statistics.add(figures)

    def observe(self, snapshot: Snapshot) -> None:
        """Record a snapshot; one at a time."""
        with self._lock:
            forget_removed(self._past, snapshot, _SERVERS)
            for state in snapshot.servers:
                past = self._of(state.server.key)
                past.down_since = (past.down_since or snapshot.taken_at) if _is_down(state) else None
                points = past.points
                if not state.stale and (not points or snapshot.taken_at - points[-1][1].at >= _SPACING_S):
                    points.append((self._next(), _point(snapshot.taken_at, state)))
        for alarm in self._alarms.check(snapshot):
            self._logged.append((snapshot.taken_at, alarm))
            for listener in self._listeners:
                listener(alarm)

    def document(
        self, snapshot: Snapshot, focus: str | None = None, after: int | None = None, *, refocus: bool = False
    ) -> dict[str, Any]:
        """The document as JSON-ready data.

        Unknown is null, times are Unix time or durations in seconds. History, percentiles and requests are those of one
        server: the one with the key ``focus``, else the first. ``overview`` has a row for each server.

        With ``after``, the ``cursor`` of an earlier document, it contains only changes: the state of the server in
        focus, its new points and requests (all of them if ``refocus``: it was not in focus before), changed rows of the
        overview, and the keys if they changed. ``whole`` is true if the document is complete nevertheless: the server
        does not exist, or the cursor is from another process.
        """
        keys = [key_of(state.server) for state in snapshot.servers]
        chosen = keys.index(focus) if focus in keys else 0
        with self._lock:
            changed = self._overview(snapshot, keys)
            whole = after is None or focus not in keys or not self._first <= after <= self._number
            known = 0 if whole or after is None else after
            since = 0 if refocus else known
            past = self._of(snapshot.servers[chosen].server.key) if keys else None
            own = [one for one in (past.requests if past is not None else ()) if one[0] > since]
            shared = {one[0]: one for one in self._requests} if whole else {}
            requests = sorted({**shared, **{one[0]: one for one in own}}.values(), key=lambda one: one[0])
            points = [point for number, point in past.points if number > since] if past is not None else []
            summary = self._tally.summary() if past is None else past.summary(snapshot.taken_at)
            document = {
                "version": VERSION,
                "taken_at": snapshot.taken_at,
                "about": self._about,
                "cursor": self._number,
                "whole": whole,
                "keys": keys if whole or self._keys_number > known else None,
                "overview": [row for number, row in changed if number > known],
                "alarms": [{"at": at, "name": alarm.name, "text": str(alarm)} for at, alarm in self._logged],
            }
        return {
            **document,
            "servers": [_server(state) for index, state in enumerate(snapshot.servers) if whole or index == chosen],
            "focus": keys[chosen] if keys else None,
            "history": {
                field.name: [getattr(point, field.name) for point in points] for field in dataclasses.fields(Point)
            },
            "summary": summary.as_dict(),
            "speed": _speed(
                [] if past is None else [one[1] for one in past.requests],
                server_ceilings(snapshot.servers[chosen], snapshot.devices) if keys else None,
            ),
            "summary_of_all": self._tally.summary().as_dict(),
            "requests": [_request(*one[1:]) for one in (requests if whole else requests[-_FOLLOWED:])],
            "devices": [_device(device) for device in snapshot.devices],
            "dropped": dict(snapshot.records_dropped),
        }

    def _overview(self, snapshot: Snapshot, keys: list[str]) -> list[tuple[int, dict[str, Any]]]:
        """The row of each server, with the sequence number of its last change."""
        if keys != self._keys:
            self._keys, self._keys_number = keys, self._next()
        logged = {state.server.key[:2] for state in snapshot.servers if state.log is not None}
        warned = {
            alarm.server.key
            for at, alarm in self._logged
            if alarm.server is not None and snapshot.taken_at - at < _WARNED_S
        }
        values = Counter(name for name, _ in {label for state in snapshot.servers for label in state.server.labels})
        lines = []
        for key, state in zip(keys, snapshot.servers, strict=True):
            server = state.server.key
            past = self._of(server)
            seen = server[0] is None or server[:2] in logged or past.statistics.requests > 0
            row = _row(key, state, past if seen else None, snapshot.taken_at, warned=server in warned)
            row["labels"] = labels_of(state.server, values)
            row["down_since"] = past.down_since
            if row != past.row:
                past.row, past.row_number = row, self._next()
            lines.append((past.row_number, row))
        return lines

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _of(self, server: ServerKey) -> _History:
        past = self._past.get(server)
        if past is None:
            past = self._past[server] = _History()
        return past


def key_of(server: ServerInfo) -> str:
    """A server's address and model as text: ``127.0.0.1:8090 model.gguf``."""
    return f"{server.shown_address} {server.model or ''}".rstrip()


def labels_of(server: ServerInfo, values: Mapping[str, int]) -> str:
    """A server's labels as text: ``pod=llama-0 env=prod``.

    Those with the most ``values`` over all servers come first, because they tell the servers apart in little room.
    """
    ordered = sorted(server.own_labels, key=lambda label: -values[label[0]])
    text = " ".join(f"{name}={value}" for name, value in ordered)
    return text if len(text) <= _LONGEST_LABELS else f"{text[: _LONGEST_LABELS - 1]}…"


def _point(at: float, state: ServerSnapshot) -> Point:
    cache = state.kv_cache
    return Point(
        at,
        None if cache is None else cache.active,
        None if cache is None else cache.cached,
        None if state.slots is None else sum(slot.busy for slot in state.slots),
        state.deferred,
        state.decode_rate,
    )


def _row(key: str, state: ServerSnapshot, past: _History | None, at: float, *, warned: bool) -> dict[str, Any]:
    """A server's row of the overview. ``past``: None if its requests are unknown."""
    cache = state.kv_cache
    share = None if cache is None or cache.headroom is None or not cache.capacity else cache.headroom / cache.capacity
    late = None if past is None else past.summary(at, fresh_s=_FRESH_S).time_to_first_token.p95
    outcomes = None if past is None else past.statistics.outcomes()
    return {
        "key": key,
        "up": state.up,
        "state": state.state,
        "stale": state.stale,
        "trouble": "down" if _is_down(state) else "warned" if warned else None,
        "busy": None if state.slots is None else sum(slot.busy for slot in state.slots),
        "slots": None if state.slots is None else len(state.slots),
        "deferred": state.deferred,
        "decode_rate": _short(state.decode_rate),
        "headroom": _short(share),
        "ttft_p95_s": _short(late),
        "requests": None if outcomes is None else sum(outcomes.values()),
        "failed": None if outcomes is None else sum(outcomes[one.value] for one in FAILED),
        "restarts": state.restarts,
    }


def _is_down(state: ServerSnapshot) -> bool:
    return state.state in ("failed", "stalled") or (state.up is False and state.state != "starting")


def _short(value: float | None) -> float | None:
    """Rounded to the four digits that are shown, so smaller changes do not count as changes."""
    return None if value is None else float(f"{value:.4g}")


def _server(state: ServerSnapshot) -> dict[str, Any]:
    cache, shape = state.kv_cache, state.model
    weights = None if shape is None else shape.weights
    return {
        "key": key_of(state.server),
        **dataclasses.asdict(state.server),
        "up": state.up,
        "state": state.state,
        "stale": state.stale,
        "restarts": state.restarts,
        "started_at": state.process_started_at,
        "loading_s": state.loading_s,
        "deferred": state.deferred,
        "decode_rate": state.decode_rate,
        "context_shifts": state.context_shifts,
        "counters": dict(state.counters),
        "slots": None if state.slots is None else [dataclasses.asdict(slot) for slot in state.slots],
        "kv_cache": None if cache is None else {**dataclasses.asdict(cache), "headroom": cache.headroom},
        "process": None if state.process is None else dataclasses.asdict(state.process),
        "settings": given_flags(state.settings) if state.settings is not None else {},
        "shape": None
        if shape is None
        else {
            "name": shape.name,
            "architecture": shape.architecture,
            "attention": attention_summary(shape),
            "layers": len(shape.layers),
            "context_length": shape.context_length,
            "embedding_length": shape.embedding_length,
            "file_type": shape.file_type,
            "parameters": None if weights is None else weights.parameters,
            "weights_bytes": None if weights is None else weights.n_bytes,
        },
    }


def _device(device: DeviceSnapshot) -> dict[str, Any]:
    return {
        "id": device.id,
        "name": device.name,
        "utilization": device.utilization,
        "memory_used": device.memory_used,
        "memory_limit": device.memory_limit,
        "power_w": device.power_w,
        "power_limit_w": device.power_limit_w,
        "temperature_c": device.temperature_c,
        "throttled_by": None if device.throttled_by is None else list(device.throttled_by),
    }


def _speed(completions: Sequence[Completion], ceilings: Ceilings | None) -> dict[str, Any]:
    """Prefill and decode rates of one server's last requests, with their share of ``ceilings``."""
    prefill, decode = (None, None) if ceilings is None else ceilings
    return dataclasses.asdict(request_speed(completions, prefill_ceiling=prefill, decode_ceiling=decode))


def _request(completion: Completion, trace_id: str | None) -> dict[str, Any]:
    return {
        "server": key_of(completion.server),
        "trace_id": trace_id,
        "slot": completion.slot,
        "task": completion.task,
        "outcome": completion.outcome.value,
        "error": completion.error,
        "arrived_at": completion.arrived_at,
        "started_at": completion.started_at,
        "ended_at": completion.ended_at,
        "queue_s": completion.queue_s,
        "prefill_s": completion.prefill_s,
        "decode_s": completion.decode_s,
        "first_token_at": completion.first_token_at,
        "ttft_s": completion.time_to_first_token_s,
        "tpot_s": completion.time_per_output_token_s,
        "tokens_per_second": completion.tokens_per_second,
        "prompt_tokens": completion.prompt_tokens,
        "prompt_cached": completion.prompt_cached,
        "prompt_reusable": completion.prompt_reusable,
        "prompt_recomputed": completion.prompt_recomputed,
        "recompute_s": completion.recompute_s,
        "recompute_cause": None if completion.recompute_cause is None else completion.recompute_cause.value,
        "generated": completion.generated,
        "context_tokens": completion.context_tokens,
        "truncated": completion.truncated,
        "context_shifts": completion.context_shifts,
        "bandwidth_utilization": None if completion.gpu is None else completion.gpu.bandwidth_utilization,
    }
