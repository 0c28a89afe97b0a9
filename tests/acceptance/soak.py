"""Soak: real servers, a collector and Prometheus under load, with random faults; at the end all counts agree.

Environment: ``SOAK_SECONDS`` (3600), ``SOAK_SEED`` (1). ``serve`` and ``attach`` run at once, each with a server of its
own: xllamacpp, whose pipe is read, and llama-server, whose log file is followed. Faults: tests/soak_faults.py.
With an even seed ``serve`` exports over gRPC, and its clock is not stepped: its timers would notice the fake clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance import ProofFailed
from tests.attached import Unmanaged, unmanaged
from tests.load import Answer, Clients, completion, endless
from tests.parts import Child, OtlpSink, Prometheus, RotelAgent, llama_server, scrape_config, wait_until
from tests.parts.fake_clock import FakeClock
from tests.parts.small_disk import SmallDisk, small_disk
from tests.serving import CONTEXT, SLOTS, Serving
from tests.soak_faults import Faults
from tests.tiny_gguf import write_tiny_model

_EVERY_S = (2.0, 8.0)
"""Time between two faults."""
_PAUSE_S = 1.0
"""Between two requests of a client: a soak lasts long and does not have to be fast."""
_WARM_UP = 0.25
"""Share of the time after which memory must be flat."""
_MEMORY_MIB = 25.0
"""Growth of the resident memory after the warm-up, at most."""
_SAMPLES = 200
"""Samples of memory and files in the result."""
_DISK = "1g"
_ACCEPTED = 512
"""Spans that a collector has accepted and not passed on, at most."""
_SPAN_LOSSES = ("shed", "queue_full", "export_failed", "rejected", "shutdown", "span_failed")


@dataclass
class Observer:
    """A llamatel process: its metrics, its memory, its request log."""

    pid: int
    metrics_url: str
    samples: list[tuple[float, float, int]] = field(default_factory=list)
    """Seconds since the start, resident MiB, open files."""
    answers: list[Answer] = field(default_factory=list)
    """What the clients of its server saw."""

    def sample(self, at: float) -> None:
        """Note memory and open files."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        files = sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())
        self.samples.append((round(at, 1), round(int(found.group(1)) / 1024, 1), files))

    def metrics(self) -> dict[str, float]:
        """Sums of all series by name, and ``dropped.REASON``."""
        with urllib.request.urlopen(self.metrics_url, timeout=60) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        sums: defaultdict[str, float] = defaultdict(float)
        for sample in (sample for family in families for sample in family.samples):
            sums[sample.name] += sample.value
            if sample.name == "llamatel_records_dropped_total":
                sums[f"dropped.{sample.labels['reason']}"] += sample.value
            if sample.name == "llamacpp_tokens_total":
                sums[f"tokens.{sample.labels['type']}"] += sample.value
        return dict(sums)

    def figures(self, metrics: dict[str, float], rows: list[dict[str, Any]], scraped: float) -> dict[str, Any]:
        """What each side counted."""
        memory = [mib for at, mib, _ in self.samples if at >= _WARM_UP * self.samples[-1][0]]
        files = [number for _, _, number in self.samples]
        return {
            "clients": dict(Counter(answer.outcome for answer in self.answers)),
            "rows": dict(Counter(row["outcome"] for row in rows)),
            "requests": {
                "clients": len(self.answers),
                "rows": len(rows),
                "counter": metrics.get("llamacpp_requests_total", 0),
                "histogram": metrics.get("gen_ai_server_request_duration_seconds_count", 0),
                "prometheus": scraped,
                "lost": metrics.get("llamatel_requests_lost_total", 0),
            },
            "output_tokens": {
                "rows_ok": sum(row["generated"] or 0 for row in rows if row["outcome"] == "ok"),
                "clients_ok": sum(timing["predicted_n"] for answer in self.answers for timing in answer.timings),
                "counter": metrics.get("tokens.output", 0),
            },
            "spans_exported": metrics.get("llamatel_spans_exported_total", 0),
            "dropped": {name[8:]: number for name, number in metrics.items() if name[:8] == "dropped." and number},
            "log_bytes_lost": metrics.get("llamatel_log_lost_bytes_total", 0),
            "memory_mib": {"first": memory[0], "last": memory[-1], "largest": max(memory)},
            "open_files": {"first": files[0], "last": files[-1], "largest": max(files)},
            "samples": self.samples[:: max(1, len(self.samples) // _SAMPLES)],
        }


@dataclass
class Soak:
    """One run."""

    folder: Path
    seconds: float
    seed: int

    def run(self) -> dict[str, object]:
        """Run it and check the invariants."""
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children would ignore it, and with it the rotation
        with contextlib.ExitStack() as running:
            collected, received = running.enter_context(OtlpSink()), running.enter_context(OtlpSink())
            rotel = RotelAgent(collected, self.folder).start()
            running.callback(rotel.stop)
            disk = running.enter_context(small_disk(self.folder / "disk", _DISK))
            clock = FakeClock(self.folder) if self.seed % 2 else None
            serving = self._serve(disk, rotel, clock)
            running.callback(serving.child.stop)
            observed = running.enter_context(self._observed())
            attached = self._attach(observed, received)
            running.callback(attached.stop)
            serve = Observer(serving.pid, serving.metrics_url)
            attach = Observer(attached.pid, _metrics_url(attached))
            addresses = [one.metrics_url.removeprefix("http://").removesuffix("/metrics") for one in (serve, attach)]
            config = scrape_config(*addresses, interval="5s")
            prometheus = running.enter_context(Prometheus(config, self.folder / "prometheus"))
            faults = Faults(
                serving, rotel, disk, clock, attached.pid, observed, received, random.Random(self.seed)
            )  # fmt: skip
            started = time.time()
            self._load(serve, attach, serving.url, observed.url, faults)
            _settle(serve, attach)
            scraped = _scraped(prometheus, addresses, [serve, attach])
            counted = [serve.metrics(), attach.metrics()]
            theirs = _llamacpp_counter(observed)
            codes = [_end(serving.child), _end(attached)]
            figures: dict[str, Any] = {
                "seconds": self.seconds,
                "seed": self.seed,
                "faults": dict(sorted(faults.counts.items())),
                "history": [(round(at - started, 1), name) for at, name in faults.history],
                "expected_cuts": faults.expected_cuts,
                "exit_codes": codes,
                "serve": serve.figures(counted[0], _rows(disk.path), scraped[0]),
                "attach": attach.figures(counted[1], _rows(self.folder), scraped[1]),
            }
            figures["attach"]["output_tokens"]["llama.cpp"] = theirs
            for name, sink in (("serve", collected), ("attach", received)):
                spans = sink.spans()
                figures[name]["spans_received"] = len({span.span_id for span in spans})
                figures[name]["traces_received"] = len({span.trace_id for span in spans})
        try:
            check(figures)
        except AssertionError as error:
            raise ProofFailed(str(error)[:300], figures) from error
        return figures

    def _serve(self, disk: SmallDisk, rotel: RotelAgent, clock: FakeClock | None) -> Serving:
        endpoint = rotel.grpc_endpoint if clock is None else rotel.http_endpoint
        return Serving(
            self.folder, write_tiny_model(self.folder / "tiny.gguf"),
            "--restart", "on-failure", "--max-restarts", "100000", "--otlp-endpoint", endpoint,
            "--otlp-protocol", "grpc" if clock is None else "http/protobuf",
            "--server-log", str(disk.path / "server.log"), rows=disk.path / "requests.jsonl",
            env={"OTEL_BSP_SCHEDULE_DELAY": "200", **({} if clock is None else clock.environment)},
        )  # fmt: skip

    def _observed(self) -> contextlib.AbstractContextManager[Unmanaged]:
        flags = ("-m", self.folder / "tiny.gguf", "--metrics", "-np", str(SLOTS), "-c", str(SLOTS * CONTEXT))
        return unmanaged(llama_server(), self.folder, *flags, "--threads-http", "40", "-lv", "3")

    def _attach(self, observed: Unmanaged, sink: OtlpSink) -> Child:
        child = Child(
            [
                sys.executable, "-m", "llamatel.cli.main", "attach", observed.url, "--log", observed.child.log,
                "--from-start", "--metrics-addr", "127.0.0.1:0", "--jsonl", self.folder / "requests.jsonl",
                "--otlp-endpoint", sink.endpoint, "--otlp-protocol", "http/protobuf",
            ],
            self.folder / "attach.log",
            {"OTEL_BSP_SCHEDULE_DELAY": "200"},
        )  # fmt: skip
        child.wait_ready(lambda: "metrics" in child.output() and "OTLP" in child.output(), 60)
        return child

    def _load(self, serve: Observer, attach: Observer, serve_url: str, attach_url: str, faults: Faults) -> None:
        requests = [completion(f"Number {n}", 4 + n % 24, stream=bool(n % 2)) for n in range(40)]
        requests += [endless(f"Tell {n}", context=CONTEXT, stream=True, hang_up=3) for n in range(4)]
        started = time.monotonic()
        while (now := time.monotonic() - started) < self.seconds:
            at_once = faults.source.choice((1, 2, SLOTS, 2 * SLOTS))
            with (
                Clients(serve_url) as clients,
                Clients(attach_url) as others,
                clients.keep_sending(requests, at_once=at_once, pause_s=_PAUSE_S) as sending,
                others.keep_sending(requests, at_once=at_once, pause_s=_PAUSE_S) as sending_too,
            ):
                time.sleep(faults.source.uniform(*_EVERY_S))
                faults.next()
                time.sleep(1.0)
                serve.answers += sending.end()
                attach.answers += sending_too.end()
            for observer in (serve, attach):
                observer.sample(now)


def _metrics_url(child: Child) -> str:
    found = re.search(r"metrics +(http://\S+)", child.output())
    assert found is not None, child.output()
    return found.group(1)


def _settle(*observers: Observer) -> None:
    """Wait until nothing runs, everything is read and all spans are sent."""
    last: list[dict[str, float]] = []
    for _ in range(60):
        now = [observer.metrics() for observer in observers]
        names = ("llamacpp_requests_total", "llamatel_spans_exported_total")
        if last and all(a.get(name) == b.get(name) for a, b in zip(last, now, strict=True) for name in names):
            return
        last = now
        time.sleep(3.0)


def _scraped(prometheus: Prometheus, addresses: list[str], observers: list[Observer]) -> list[float]:
    """What Prometheus has, once it has scraped the last requests."""

    def query(address: str) -> float:
        return sum(value for _, value in prometheus.query(f'llamacpp_requests_total{{instance="{address}"}}'))

    with contextlib.suppress(TimeoutError):
        wait_until(
            lambda: (
                [query(one) for one in addresses] == [one.metrics()["llamacpp_requests_total"] for one in observers]
            ),
            30,
            every=1.0,
        )
    return [query(address) for address in addresses]


def _llamacpp_counter(server: Unmanaged) -> float:
    """The tokens that llama.cpp counted itself."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        found = re.search(r"(?m)^llamacpp:tokens_predicted_total (\S+)", answer.read().decode())
    assert found is not None
    return float(found.group(1))


def _end(child: Child) -> int:
    child.process.terminate()
    return child.process.wait(60)


def _rows(folder: Path) -> list[dict[str, Any]]:
    def lines() -> Iterator[str]:
        for path in folder.glob("requests.jsonl*"):
            yield from path.read_text().splitlines()

    return [json.loads(line) for line in lines()]


def check(figures: dict[str, Any]) -> None:
    """Raise AssertionError unless every count agrees."""
    assert figures["exit_codes"] == [0, 0], figures
    for name in ("serve", "attach"):
        part = figures[name]
        requests, dropped = part["requests"], part["dropped"]
        assert requests["counter"] == requests["histogram"] == requests["prometheus"], (name, part)
        assert requests["rows"] + dropped.get("jsonl_failed", 0) == requests["counter"], (name, part)
        lost = sum(dropped.get(reason, 0) for reason in _SPAN_LOSSES)
        # A collector that is killed loses what it had accepted.
        accepted = 0 if name == "attach" else _ACCEPTED * figures["faults"].get("kill collector", 0)
        assert part["spans_received"] >= part["spans_exported"] - accepted, (name, part)
        assert part["traces_received"] >= requests["counter"] - lost - accepted, (name, part)
        assert part["memory_mib"]["last"] - part["memory_mib"]["first"] <= _MEMORY_MIB, (name, part)
        assert part["open_files"]["last"] <= part["open_files"]["first"] + 8, (name, part)
    # A request may complete before the server notices that its client has disconnected. The last lines of a killed
    # server are lost with it: as many requests as it had slots may end differently, and again as many were waiting.
    part, cuts = figures["serve"], figures["expected_cuts"]
    unwritten = part["dropped"].get("jsonl_failed", 0)
    assert abs(part["requests"]["counter"] - part["clients"]["ok"] - part["clients"]["cancelled"]) <= cuts, part
    assert part["rows"]["ok"] + unwritten + cuts >= part["clients"]["ok"], part
    part = figures["attach"]
    assert part["requests"]["counter"] == part["requests"]["clients"], part
    assert part["requests"]["lost"] == part["log_bytes_lost"] == 0, part
    assert set(part["clients"]) <= {"ok", "cancelled"}, part
    tokens = part["output_tokens"]
    assert tokens["rows_ok"] == tokens["clients_ok"], part
    assert tokens["counter"] == tokens["llama.cpp"] > 0, part


def run(folder: Path) -> dict[str, object]:
    """Run the soak as the environment says."""
    return Soak(folder, float(os.environ.get("SOAK_SECONDS", "3600")), int(os.environ.get("SOAK_SEED", "1"))).run()
