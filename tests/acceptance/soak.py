"""Soak: a real server, a collector and Prometheus under load, with random faults; at the end all counts agree.

Environment: ``SOAK_SECONDS`` (3600), ``SOAK_SEED`` (1). Faults: the server is killed or stopped, the collector is
killed, the logs are rotated with SIGHUP; the number of clients changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.load import Answer, Clients, completion, endless
from tests.parts import OtlpSink, Prometheus, RotelAgent, scrape_config, wait_until
from tests.serving import CONTEXT, SLOTS, Serving
from tests.tiny_gguf import write_tiny_model

_EVERY_S = (4.0, 12.0)
"""Time between two faults."""
_STOPPED_S = 2.0
_COLLECTOR_AWAY_S = 5.0
_WARM_UP = 0.25
"""Share of the time after which memory must be flat."""
_MEMORY_MIB = 25.0
"""Growth of the resident memory after the warm-up, at most."""


@dataclass
class Soak:
    """One run."""

    folder: Path
    seconds: float
    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, float, int]] = field(default_factory=list)
    """Seconds since the start, resident MiB, open files of llamatel."""
    expected_cuts: int = 0
    """Requests that ran at most when the server was killed."""

    def run(self) -> dict[str, object]:
        """Run it and check the invariants."""
        random_numbers = random.Random(self.seed)
        with OtlpSink() as sink, contextlib.ExitStack() as running:
            rotel = RotelAgent(sink, self.folder)
            rotel.start()
            running.callback(rotel.stop)
            model = write_tiny_model(self.folder / "tiny.gguf")
            serving = Serving(
                self.folder, model, "--restart", "on-failure", "--max-restarts", "100000",
                "--otlp-endpoint", rotel.grpc_endpoint, "--server-log", str(self.folder / "server.log"),
                OTEL_BSP_SCHEDULE_DELAY="200",
            )  # fmt: skip
            running.callback(serving.child.stop)
            address = serving.metrics_url.removeprefix("http://").removesuffix("/metrics")
            prometheus = running.enter_context(
                Prometheus(scrape_config(address, interval="1s"), self.folder / "prometheus")
            )
            answers = self._load(serving, rotel, random_numbers)
            self._settle(serving)
            return self._check(serving, sink, prometheus, answers)

    def _load(self, serving: Serving, rotel: RotelAgent, random_numbers: random.Random) -> list[Answer]:
        small = [completion(f"Number {n}", 4 + n % 24, stream=bool(n % 2)) for n in range(40)]
        small += [endless(f"Tell {n}", context=CONTEXT, stream=True, hang_up=3) for n in range(4)]
        started = time.monotonic()
        faults: list[Callable[[Serving, RotelAgent], None]] = [
            self._kill_server, self._stop_server, self._kill_collector, self._rotate,
        ]  # fmt: skip
        answers: list[Answer] = []
        while (now := time.monotonic() - started) < self.seconds:
            at_once = random_numbers.choice((1, 2, SLOTS, 2 * SLOTS))
            with Clients(serving.url) as clients, clients.keep_sending(small, at_once=at_once) as sending:
                time.sleep(random_numbers.uniform(*_EVERY_S))
                random_numbers.choice(faults)(serving, rotel)
                time.sleep(1.0)
                answers += sending.end()
            memory = serving.resident_mib()
            self.samples.append((now, memory, len(os.listdir(f"/proc/{serving.pid}/fd"))))  # noqa: PTH208 - a count
            time.sleep(random_numbers.choice((0.0, 0.0, 1.0)))
        return answers

    def _kill_server(self, serving: Serving, _: RotelAgent) -> None:
        self.faults["server killed"] += 1
        self.expected_cuts += SLOTS
        os.kill(serving.find_server(), signal.SIGKILL)
        wait_until(lambda: serving.metric("llamacpp_server_up") == 1, 60, "the server is up again")

    def _stop_server(self, serving: Serving, _: RotelAgent) -> None:
        self.faults["server stopped"] += 1
        pid = serving.find_server()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(_STOPPED_S)
        os.kill(pid, signal.SIGCONT)

    def _kill_collector(self, _: Serving, rotel: RotelAgent) -> None:
        self.faults["collector killed"] += 1
        rotel.kill()
        time.sleep(_COLLECTOR_AWAY_S)
        rotel.start()

    def _rotate(self, serving: Serving, _: RotelAgent) -> None:
        self.faults["logs rotated"] += 1
        number = self.faults["logs rotated"]
        for path in (serving.rows, self.folder / "server.log"):
            path.rename(path.with_name(f"{path.name}.{number}"))
        os.kill(serving.pid, signal.SIGHUP)
        wait_until(serving.rows.exists, 20, "the request log is open again")

    def _settle(self, serving: Serving) -> None:
        """Wait until nothing runs and everything is written."""
        wait_until(lambda: serving.metric("llamacpp_slots", state="busy") in (0, None), 60, "the slots are idle")
        time.sleep(3.0)

    def _check(
        self, serving: Serving, sink: OtlpSink, prometheus: Prometheus, answers: list[Answer]
    ) -> dict[str, object]:
        paths = self.folder.glob("requests.jsonl*")
        rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        counted = serving.metric("llamacpp_requests_total") or 0
        histogram = serving.metric("gen_ai_server_request_duration_seconds_count") or 0
        lost = serving.metric("llamatel_requests_lost_total") or 0
        dropped = serving.metric("llamatel_records_dropped_total") or 0
        time.sleep(2.5)
        [(_, scraped)] = prometheus.query("sum(llamacpp_requests_total)")
        serving.child.process.terminate()
        code = serving.exit_within(30)
        spans = sum(not span.parent_id for span in sink.spans())
        ok = sum(answer.outcome == "ok" for answer in answers)
        recorded_ok = sum(row["outcome"] == "ok" for row in rows)
        memory = [mib for at, mib, _ in self.samples if at >= _WARM_UP * self.seconds] or [self.samples[-1][1]]
        files = [number for _, _, number in self.samples]
        figures = {
            "seconds": self.seconds,
            "seed": self.seed,
            "faults": dict(self.faults),
            "clients": dict(Counter(answer.outcome for answer in answers)),
            "recorded": dict(Counter(row["outcome"] for row in rows)),
            "exit_code": code,
            "requests": {
                "rows": len(rows),
                "counter": counted,
                "histogram": histogram,
                "prometheus": scraped,
                "lost": lost,
            },
            "spans": {"received": spans, "dropped": dropped},
            "memory_mib": {"first": memory[0], "last": memory[-1], "largest": max(memory)},
            "open_files": {"first": files[0], "last": files[-1], "largest": max(files)},
        }
        assert code == 0, figures
        assert len(rows) == counted == histogram == scraped, figures
        assert spans + dropped >= len(rows), figures
        # The last lines of a killed server are lost with it: as many requests as it had slots may end differently. A
        # request may complete before the server notices that its client has disconnected.
        cancelled = sum(answer.outcome == "cancelled" for answer in answers)
        assert ok - self.expected_cuts <= recorded_ok <= ok + cancelled + self.expected_cuts, figures
        assert abs(len(rows) - ok - cancelled) <= 2 * self.expected_cuts, figures
        assert memory[-1] - memory[0] <= _MEMORY_MIB, figures
        assert files[-1] <= files[0] + 8, figures
        return figures


def run(folder: Path) -> dict[str, object]:
    """Run the soak as the environment says."""
    return Soak(folder, float(os.environ.get("SOAK_SECONDS", "3600")), int(os.environ.get("SOAK_SEED", "1"))).run()
