"""Clients that write into a real server's log: the requests recorded are exactly those that were sent.

A short form of ``make acceptance ARGS=injection``, which tries every vector with more payloads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from llamatel.llama import ServerManager
from llamatel.llama.http.server_client import ServerClient
from llamatel.records import Completion, Outcome
from llamatel.snapshots import ServerSnapshot
from tests.fuzz.server_log import lines_of
from tests.golden.reading import ZERO, read_attached, timed
from tests.injection import FIRST_TASK, WORD, Attempt, attack
from tests.parts import wait_until
from tests.servers import complete
from tests.test_log_wrappers import WRAPPERS, Wrap

FORGEABLE_AS_TEXT = {
    "completion.grammar_closed",
    "completion.grammar_lark_closed",
    "completion.samplers_closed",
    "completion.schema_format_closed",
    "completion.schema_pattern_closed",
    "completion.schema_ref_closed",
    "completion.schema_type_closed",
    "responses.tool_type_closed",
}
"""Vectors that can forge requests in a text log (docs/security.md); which of them do depends on the build."""
USUAL_WRAPPERS = (
    "docker json-file", "docker logs -t", "containerd", "journald short", "journald json", "syslog", "kubectl --prefix",
    "compose", "stern", "Python logging",
)  # fmt: skip


class Attacked:
    """A server after an attack, with its records."""

    def __init__(
        self,
        backend: str,
        model: Path,
        *flags: str,
        texts: list[str] | None = None,
        more: bool = False,
        log: Path | None = None,
    ) -> None:
        """``more``: with further vectors; ``log``: where to keep the server's log."""
        records: list[Completion] = []
        with ServerManager(backend=backend, server_log=log) as server:
            server.subscribe(records.append)
            server.start_server(model, port=0, n_parallel=2, extra_args=["-t", "1", *flags]).wait_until_ready(60)
            assert server.base_url
            self.before = self._snapshot(server)
            self.attempts = attack(server.base_url, None if texts is None else iter(texts), more=more)
            assert complete(server.base_url, 3) == 200
            wait_until(lambda: any(record.generated == 3 for record in records), 60, "the last request")
            self.counters = ServerClient(server.base_url).counters()
            self.after = self._snapshot(server)
            started = time.monotonic()
            server.stop_server(timeout=10)
            self.stop_s = time.monotonic() - started
        self.records = records

    @staticmethod
    def _snapshot(server: ServerManager) -> ServerSnapshot:
        snapshot = server.snapshot()
        assert snapshot is not None
        return snapshot

    @property
    def forged(self) -> set[str]:
        """Vectors with a recorded request that was never sent."""
        by_task = {attempt.task: attempt.vector.name for attempt in self.attempts}
        return {by_task[record.task] for record in self.records if record.task is not None and record.task in by_task}

    @property
    def completed(self) -> list[Completion]:
        return [record for record in self.records if record.outcome is Outcome.OK and record.generated is not None]


def refused(attempts: list[Attempt]) -> int:
    return sum(attempt.status >= 400 for attempt in attempts)


@pytest.mark.parametrize("texts", [None, [WORD]], ids=["lines and records", "words of 64 KiB"])
def test_injection_jsonl_log_cannot_be_forged(backend: str, tiny_model: Path, texts: list[str] | None) -> None:
    attacked = Attacked(backend, tiny_model, texts=texts)
    check_unforged(attacked)


def check_unforged(attacked: Attacked) -> None:
    """Recorded requests equal those sent, and llama.cpp's counters."""
    assert attacked.forged == set()
    sent = sum(attempt.vector.generates and attempt.status == 200 for attempt in attacked.attempts) + 1
    generated, counted = sum(record.generated or 0 for record in attacked.completed), attacked.counters
    # What a request generated that llama.cpp gave up with an exception is in its counter alone.
    gave_up = any("got exception: Unexpected" in (record.error or "") for record in attacked.records)
    assert generated == counted["tokens_predicted_total"] or (gave_up and generated < counted["tokens_predicted_total"])
    assert len(attacked.completed) >= sent
    assert all(record.task is not None and record.task < FIRST_TASK for record in attacked.records)
    log, before, after = attacked.after.log, attacked.before, attacked.after
    assert log is not None
    assert sum(log.contradictions.values()) == 0
    assert 0 < sum(log.rejected.values()) <= refused(attacked.attempts)
    assert (after.up, after.state, after.restarts) == (True, "ready", 0)
    assert (after.server.address, after.server.port) == (before.server.address, before.server.port)
    assert after.kv_cache is not None
    assert before.kv_cache is not None
    assert (after.kv_cache.capacity, len(after.slots or ())) == (before.kv_cache.capacity, 2)
    assert attacked.stop_s < 10


def test_injection_text_log_documented_vectors(backend: str, tiny_model: Path, tmp_path: Path) -> None:
    """The log of the attacked server, also as other programs wrap it."""
    attacked = Attacked(backend, tiny_model, "--no-log-jsonl", log=tmp_path / "log")
    assert attacked.forged <= FORGEABLE_AS_TEXT
    assert attacked.forged, "nothing was forged: is this still a text log?"
    assert attacked.stop_s < 10
    plain, wrapped = wrapped_tasks(tmp_path / "log", USUAL_WRAPPERS)
    for wrapper, tasks in wrapped.items():
        assert tasks <= plain, wrapper
        assert len(tasks) > len(plain) / 2, wrapper


def wrapped_tasks(log: Path, wrappers: Iterable[str]) -> tuple[set[int], dict[str, set[int]]]:
    """The requests in a server's log, by their tasks, as it is and with what other programs put around its lines."""
    at, lines = ZERO, []
    for line, now in timed(lines_of(log.read_bytes())):
        at = max(at + 1e-6, now)  # forged timestamps are no times of writing
        lines.append((line, at))

    def tasks(wrap: Wrap) -> set[int]:
        found = read_attached((wrap(line, now), now) for line, now in lines)
        return {each.task for each in found if each.task is not None}

    return tasks(lambda line, _: line), {name: tasks(WRAPPERS[name]) for name in wrappers}
