"""Writes finished requests as JSON lines, for users without an OpenTelemetry backend.

A sink is called with each Completion and its trace id, on the observer's thread.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import select
import sys
import threading
from collections.abc import Callable

from llamatel.errors import UsageError
from llamatel.outputs.appended_file import AppendedFile, count_lost
from llamatel.outputs.log_once import LogOnce
from llamatel.records import Completion

Sink = Callable[[Completion, "str | None"], None]

log = logging.getLogger(__name__)

_START = b'{"trace_id": '


def completion_as_dict(completion: Completion, trace_id: str | None) -> dict[str, object]:
    """One request as JSON-ready data: ``trace_id``, the fields of Completion and derived ones.

    Derived: ``prompt_tokens``, ``duration_s`` (arrival to end), ``ttft_s`` (queue and prefill), ``tpot_s`` (decode time
    per token after the first), ``tokens_per_second``. Unknown is null. Times are Unix time or durations in seconds.
    """
    return {
        "trace_id": trace_id,
        **dataclasses.asdict(completion),
        "server": {**dataclasses.asdict(completion.server), "labels": dict(completion.server.labels)},
        "outcome": completion.outcome.value,
        "prompt_tokens": completion.prompt_tokens,
        "duration_s": completion.duration_s,
        "ttft_s": completion.time_to_first_token_s,
        "tpot_s": completion.time_per_output_token_s,
        "tokens_per_second": completion.tokens_per_second,
    }


class JsonLines:
    """Writes one line of JSON per request, unbuffered so that ``tail -f`` and ``jq`` see it at once.

    If writing fails (a full disk, a reader that disconnected or does not read), lines are dropped and counted, and the
    failure is logged once; the next request is tried again.
    """

    def __init__(
        self, descriptor: int, name: str, *, patience_s: float = 1.0, file: AppendedFile | None = None
    ) -> None:
        """Writes to ``descriptor``, which it closes, or to ``file``."""
        self._descriptor = descriptor
        self._file = file
        self._name = name
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._once = LogOnce(log)
        self._closed = False
        self._in_a_line = False
        self._failing = False
        self.dropped = 0

    @classmethod
    def open(cls, path: str) -> JsonLines:
        """Append to a file; ``-`` is standard output. Raises UsageError where it cannot be opened."""
        try:
            if path == "-":
                sys.stdout.flush()
                return cls(os.dup(1), "standard output")
            file = AppendedFile(path, torn_start=_START)
            return cls(file.descriptor, path, file=file)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error

    def __call__(self, completion: Completion, trace_id: str | None = None) -> None:
        """Write one request."""
        line = json.dumps(completion_as_dict(completion, trace_id)).encode() + b"\n"
        with self._lock:
            if self._closed:
                return
            try:
                self._write(line)
            except OSError as error:
                self.dropped += 1
                self._failing = True
                count_lost("jsonl_failed")
                self._once.warning(
                    "failed", "cannot write to %s: %s; its lines are dropped", self._name, error.strerror or error
                )
            else:
                self._failing = False
                if self._once.reset("failed"):
                    log.warning("%s is written to again; %d lines were dropped", self._name, self.dropped)

    def _write(self, line: bytes) -> None:
        if self._file is not None:
            self._wait_until_writable(self._file.descriptor)
            self._file.write(line)
            return
        rest = b"\n" + line if self._in_a_line else line
        while rest:
            self._wait_until_writable(self._descriptor)
            done = os.write(self._descriptor, rest)
            self._in_a_line = rest[done - 1 : done] != b"\n"
            rest = rest[done:]

    def _wait_until_writable(self, descriptor: int) -> None:
        """Raise BlockingIOError for a pipe that is not read; a ready pipe takes a line of 4 KiB without blocking."""
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if not poll.poll(0 if self._failing else self._patience_s * 1000):
            raise BlockingIOError(errno.EAGAIN, "its reader does not keep up")

    def close(self) -> None:
        """May be called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                if self._file is not None:
                    self._file.close()
                else:
                    os.close(self._descriptor)
