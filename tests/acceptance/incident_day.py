"""An incident day with real servers, Prometheus and Alertmanager: which alert fires for which incident, and when.

Ten quiet minutes first, in which nothing may fire. Then everything goes wrong at once, each on a server of its own,
with the exported rules. ``python -m tests.acceptance.incident_day`` writes the table of
docs/alerts.md from the last result.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llamatel.models import tiny_model
from tests.load import Clients, Request, chat, completion
from tests.parts import Prometheus, accepts, free_port, llama_server, wait_until
from tests.parts.monitoring import Alertmanager
from tests.parts.processes import Child

QUIET_S = 600.0
LIMIT_S = 1500.0
"""From an incident to its alert, on a busy machine; the longest ``for`` is five minutes."""
EVERY = "5s"
RESULT = Path(__file__).parent / "results" / "incident_day.json"
PAGE = Path(__file__).parents[2] / "docs" / "alerts.md"
START, END = "<!-- incident day: made by tests/acceptance/incident_day.py -->", "<!-- end of the incident day -->"
_ROUTING = ("namespace", "pod")
"""Labels that the table shows with their values; of others the names."""
EXPECTED = "expected"
"""The pod that the rules expect by name."""


_FAILED: list[str] = []
"""Incidents that could not be caused."""


@dataclass(eq=False)
class Incident:
    """An incident."""

    name: str
    alerts: tuple[str, ...]
    """The expected alerts; none if no alert may fire."""
    cause: Callable[[], object]
    instances: tuple[str, ...]
    """Targets of the alerts."""
    at: float = 0.0


@dataclass
class Fleet:
    """The servers, the llamatel processes, and the targets that Prometheus discovers."""

    folder: Path
    model: Path
    stack: contextlib.ExitStack
    targets: dict[str, str] = field(default_factory=dict)
    """Pod's name by address."""
    children: dict[str, Child] = field(default_factory=dict)
    ending: threading.Event = field(default_factory=threading.Event)
    """Set at the end: clients send no further request."""

    def start(self, name: str, argv: list[str]) -> Child:
        """Start a child process that is killed at the end, even if it is stopped."""
        child = Child(argv, self.folder / f"{name}.log")
        self.stack.callback(_end, child)
        self.children[name] = child
        return child

    def serve(self, name: str, *words: str, slots: int = 2, context: int = 2048, load: bool = True) -> tuple[int, str]:
        """``llamatel serve``; the server's port and the target."""
        port = free_port()
        argv = [*_llamatel("serve", str(self.model)), "--port", str(port), "--backend", "xllamacpp", "-ub", "64"]
        argv += ["-np", str(slots), "-c", str(context)]
        target = self._target(name, argv, *words)
        self.children[name].wait_ready(partial(_ready, self.children[name]), 60)
        if load:
            self.load(port)
        return port, target

    def llama(self, name: str, *, host: str = "127.0.0.1", load: bool = True) -> tuple[int, Path]:
        """Start a separate llama-server; return its port and its log."""
        port, log = free_port(), self.folder / f"{name}.server.log"
        argv = [
            str(llama_server()),
            "-m",
            str(self.model),
            "--host",
            host,
            "--port",
            str(port),
            "-np",
            "2",
            "-c",
            "2048",
        ]
        self.start(f"{name}.llama", [*argv, "--metrics", "--log-file", str(log)])
        wait_until(lambda: accepts(port), 60, "llama-server listens")
        if load:
            self.load(port)
        return port, log

    def attach(self, name: str, url: str, *words: str) -> str:
        """``llamatel attach``; the target."""
        return self._target(name, [*_llamatel("attach", url), *words])

    def load(self, port: int, requests: list[Request] | None = None, at_once: int = 1, pause_s: float = 0.2) -> None:
        """Requests until the end, each client with a pause between two; without ``requests`` a light load."""
        clients = self.stack.enter_context(Clients(f"http://127.0.0.1:{port}", timeout_s=1200))
        light = [completion("Hello there", 24)]
        pause_s = pause_s if requests else 1.0
        for first in range(at_once):
            words = (clients, requests or light, first, pause_s, self.ending)
            thread = threading.Thread(target=_send, args=words)
            thread.start()
            self.stack.callback(thread.join)

    def _target(self, name: str, argv: list[str], *words: str) -> str:
        address = f"127.0.0.1:{free_port()}"
        self.start(name, [*argv, "--metrics-addr", address, *words])
        self.targets[address] = name
        return address

    def stop(self) -> None:
        """Stop all processes, the servers with their requests, so that no client waits for an answer any more."""
        self.ending.set()
        for child in self.children.values():
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGCONT)
                child.process.terminate()
        for child in self.children.values():
            _end(child)

    def discover(self) -> None:
        """Write the targets for Prometheus's file discovery."""
        groups = [
            {"targets": [address], "labels": {"namespace": "prod", "pod": pod}} for address, pod in self.targets.items()
        ]
        part = self.folder / "targets.json.part"
        part.write_text(json.dumps(groups))
        part.replace(self.folder / "targets.json")


def _send(clients: Clients, requests: list[Request], first: int, pause_s: float, ending: threading.Event) -> None:
    number = first
    while not ending.wait(pause_s):
        clients.send(requests[number % len(requests)])
        number += 1


def _llamatel(*words: str) -> list[str]:
    return [sys.executable, "-m", "llamatel.cli.main", *words]


def _ready(child: Child) -> bool:
    return "ready after" in child.output()


def _end(child: Child) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.process.send_signal(signal.SIGCONT)
    child.stop(5)


def _server_process(serve: Child) -> int:
    """The llama.cpp process of a ``llamatel serve``, 0 while there is none; one of its threads started it."""
    tasks = Path(f"/proc/{serve.pid}/task").glob("*/children")
    return next((int(pid) for task in tasks for pid in task.read_text().split()), 0)


def _kill_server(serve: Child, number: int = 1) -> None:
    """Crash the server of a ``serve``, again after each restart."""
    for again in range(number):
        if again:
            time.sleep(10)  # so that Prometheus counts each restart
        os.kill(wait_until(lambda: _server_process(serve), 60, "the server runs"), signal.SIGSEGV)


def _incidents(fleet: Fleet) -> Iterator[Incident]:
    """Start the processes for the incidents; return the incidents, to be triggered later."""
    _, crashed = fleet.serve("crash", load=False)
    crash = fleet.children["crash"]
    yield Incident(
        "llama.cpp crashes under `serve`, which exits with it",
        ("LlamatelDown",),
        partial(_kill_server, crash),
        (crashed,),
    )
    _, exhausted = fleet.serve("restarts-exhausted", "--restart", "on-failure", "--max-restarts", "1", load=False)
    again = partial(_in_thread, partial(_kill_server, fleet.children["restarts-exhausted"], 2))
    yield Incident("the restarts of `serve` are used up", ("LlamatelDown",), again, (exhausted,))
    _, looping = fleet.serve("restart-loop", "--restart", "on-failure", "--max-restarts", "50", load=False)
    loop = partial(_in_thread, partial(_kill_server, fleet.children["restart-loop"], 5))
    yield Incident("llama.cpp crashes again and again", ("LlamacppRestartLoop",), loop, (looping,))
    port, log = fleet.llama("attached-crash", load=False)
    attached = fleet.attach("attached-crash", f"http://127.0.0.1:{port}", "--log", str(log))
    yield Incident(
        "a server that llamatel is attached to crashes",
        ("LlamacppServerDown",),
        fleet.children["attached-crash.llama"].kill,
        (attached,),
    )
    port, log = fleet.llama("llamatel-killed")
    killed = fleet.attach("llamatel-killed", f"http://127.0.0.1:{port}", "--log", str(log))
    yield Incident(
        "llamatel is killed (SIGKILL, out of memory)",
        ("LlamatelDown",),
        fleet.children["llamatel-killed"].kill,
        (killed,),
    )
    port, log = fleet.llama("hung", load=False)
    hung = fleet.attach("hung", f"http://127.0.0.1:{port}", "--log", str(log))
    stop = partial(fleet.children["hung.llama"].process.send_signal, signal.SIGSTOP)
    yield Incident("a server hangs (SIGSTOP)", ("LlamacppServerDown",), stop, (hung,))
    port, full = fleet.serve("pool-full", "-kvu", slots=4, context=1024)
    greedy = [completion(f"{number} once upon a time " * 12, 900) for number in range(4)]
    fill = partial(fleet.load, port, greedy, 4)
    yield Incident("the KV pool is full", ("LlamacppContextFull", "LlamacppKvHeadroomLow"), fill, (full,))
    port, failing = fleet.serve("failing")
    overlong = [chat("again " * 3000, 4)]
    fail = partial(fleet.load, port, overlong, 2)
    yield Incident(
        "requests fail (prompts are longer than a slot)",
        ("LlamacppRequestsFailing", "LlamacppMostRequestsFail"),
        fail,
        (failing,),
    )
    port, slow = fleet.serve("slow", slots=1, load=False)
    long = [completion(f"{number} what a long story " * 20, 100) for number in range(48)]
    queue = partial(fleet.load, port, long, 48, 0.0)
    yield Incident(
        "a slow model: requests wait for their first token",
        ("LlamacppTtftObjectiveFastBurn", "LlamacppRequestsDeferred"),
        queue,
        (slow,),
    )
    port, log = fleet.llama("log-truncated", load=False)
    fleet.load(port, [completion("Hello there", 2)], 2)  # as many as it has slots: nothing waits in the quiet time
    rotated = fleet.attach("log-truncated", f"http://127.0.0.1:{port}", "--log", str(log))
    cut = partial(_in_thread, partial(_cut_log, log))
    yield Incident("the log is rotated by truncation, and lines are lost", ("LlamatelLogLost",), cut, (rotated,))
    server_log = fleet.folder / "renamed.log"
    _, renamed = fleet.serve("log-renamed", "--server-log", str(server_log))
    rotate = partial(_in_thread, partial(_rotate, server_log, fleet.children["log-renamed"]))
    yield Incident("the log is rotated by renaming, and SIGHUP reopens it", (), rotate, (renamed,))
    _, scaled = fleet.serve("scaled-down")
    yield Incident("a scale-down: the target leaves discovery", (), partial(_scale_down, fleet, scaled), (scaled,))
    port, unreachable = fleet.serve("no-collector", "--otlp-endpoint", f"http://127.0.0.1:{free_port()}", load=False)
    send = partial(fleet.load, port, [completion("Hi", 2)], 2)
    yield Incident("the OTLP collector cannot be reached", ("LlamatelTelemetryDropped",), send, (unreachable,))
    host = socket.gethostname()
    port, _ = fleet.llama("pair", host=host)
    fleet.attach("pair-a", f"http://{host}:{port}")
    second = partial(_in_thread, partial(_attach_second, fleet, f"http://{host}:{port}"))
    yield Incident("a second llamatel watches the same server", ("LlamatelServerWatchedTwice",), second, ("",))
    _, expected = fleet.serve(EXPECTED, load=False)
    remove = partial(_scale_down, fleet, expected)
    yield Incident("a target that --expect names leaves discovery", ("LlamatelAbsent",), remove, (expected,))


def _in_thread(work: Callable[[], object]) -> None:
    def run() -> None:
        try:
            work()
        except (OSError, TimeoutError) as error:
            _FAILED.append(f"{work}: {error}")

    threading.Thread(target=run, daemon=True).start()


def _cut_log(log: Path) -> None:
    """Truncate the log repeatedly while it is written, like logrotate's copytruncate."""
    for _ in range(4000):
        os.truncate(log, 0)
        time.sleep(0.02)


def _rotate(log: Path, serve: Child) -> None:
    """Rename the log and have it reopened, as logrotate does, again and again."""
    for number in range(20):
        log.replace(log.with_suffix(f".{number}"))
        serve.process.send_signal(signal.SIGHUP)
        wait_until(log.exists, 60, "the log is reopened")
        time.sleep(5)


def _scale_down(fleet: Fleet, target: str) -> None:
    """Remove a target from discovery and stop it, like a scale-down."""
    name = fleet.targets.pop(target)
    fleet.discover()
    fleet.children[name].process.terminate()


def _attach_second(fleet: Fleet, url: str) -> None:
    target = fleet.attach("pair-b", url)
    wait_until(lambda: accepts(int(target.rpartition(":")[2])), 300, "it can be scraped")
    fleet.discover()


def _export(folder: Path, expected: str) -> Path:
    words = _llamatel(
        "dashboards", "export", str(folder), "--ttft", "2.5s", "--tpot", "2.5s", "--expect", f'instance="{expected}"'
    )
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "rules"


def _config(folder: Path, rules: Path, alertmanager: Alertmanager) -> dict[str, Any]:
    discovery = [{"files": [str(folder / "targets.json")], "refresh_interval": "2s"}]
    return {
        "global": {"scrape_interval": EVERY, "scrape_timeout": EVERY, "evaluation_interval": EVERY},
        "rule_files": [f"{rules}/*.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager.address]}]}]},
        "scrape_configs": [{"job_name": "llamatel", "file_sd_configs": discovery}],
    }


def _row(alert: dict[str, Any], incident: Incident) -> dict[str, Any]:
    """A line of the table."""
    labels = {name: value for name, value in alert["labels"].items() if name != "alertname"}
    return {
        "incident": incident.name,
        "alert": alert["labels"]["alertname"],
        "severity": labels.pop("severity"),
        "after_s": round(alert["received_at"] - incident.at),
        "summary": alert["annotations"]["summary"],
        "labels": labels,
        "expected": alert["labels"]["alertname"] in incident.alerts,
    }


def run(folder: Path) -> dict[str, Any]:
    """The quiet time, the incidents, and every alert that Alertmanager received."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the servers would ignore it, too
    quiet_s = float(os.environ.get("INCIDENT_DAY_QUIET_S", QUIET_S))
    with contextlib.ExitStack() as stack:
        fleet = Fleet(folder, tiny_model(), stack)
        try:
            incidents, found = _day(fleet, quiet_s)
        finally:
            fleet.stop()
    assert not _FAILED, _FAILED
    missing = {
        incident.name: sorted(
            set(incident.alerts) - {row["alert"] for row in found if row["incident"] == incident.name}
        )
        for incident in incidents
    }
    silent = [incident.name for incident in incidents if not incident.alerts]
    assert not any(missing.values()), f"not raised: { {name: alerts for name, alerts in missing.items() if alerts} }"
    loud = [row for row in found if row["incident"] in silent]
    assert not loud, f"raised for what has to stay silent: {loud}"
    unlabelled = [row for row in found if not {"namespace", "pod", "instance"} & row["labels"].keys()]
    assert not unlabelled, f"without labels that route them: {unlabelled}"
    severities = {row["severity"] for row in found}
    assert severities == {"critical", "warning", "info"}, severities
    return {"quiet_s": quiet_s, "alerts": found, "silent": silent}


def _day(fleet: Fleet, quiet_s: float) -> tuple[list[Incident], list[dict[str, Any]]]:
    """The quiet time and the incidents; returns them and the alerts."""
    incidents = list(_incidents(fleet))
    fleet.discover()
    [expected] = [address for address, name in fleet.targets.items() if name == EXPECTED]
    rules = _export(fleet.folder / "export", expected)
    alertmanager = fleet.stack.enter_context(Alertmanager(fleet.folder / "alertmanager"))
    config = _config(fleet.folder, rules, alertmanager)
    prometheus = fleet.stack.enter_context(Prometheus(config, fleet.folder / "prometheus"))
    print(f"Prometheus: {prometheus.url}", flush=True)
    time.sleep(quiet_s)
    quiet = [alert["annotations"]["summary"] for alert in alertmanager.received]
    assert not quiet, f"fired while all was well: {quiet}"
    for incident in incidents:
        incident.at = time.time()
        incident.cause()
    found = _follow(incidents, alertmanager)
    if hold := os.environ.get("INCIDENT_DAY_HOLD_S"):
        time.sleep(float(hold))  # for pictures of the dashboards
    return incidents, found


def _follow(incidents: list[Incident], alertmanager: Alertmanager) -> list[dict[str, Any]]:
    """Wait for the alerts; return those received for each incident, expected or not."""
    by_target = {target: incident for incident in incidents for target in incident.instances}
    found: list[dict[str, Any]] = []
    read = 0
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        time.sleep(1)
        while read < len(alertmanager.received):
            alert = alertmanager.received[read]
            read += 1
            incident = by_target.get(alert["labels"].get("instance", ""))
            assert incident is not None, f"an alert about no incident: {alert}"
            row = _row(alert, incident)
            known = {(each["incident"], each["alert"]) for each in found}
            if alert["status"] == "firing" and (row["incident"], row["alert"]) not in known:
                found.append(row)
                print(f"{row['after_s']:4} s  {row['alert']}: {row['summary']}", flush=True)
        raised = {(row["incident"], row["alert"]) for row in found}
        if all((incident.name, name) in raised for incident in incidents for name in incident.alerts):
            time.sleep(60)  # unexpected alerts could still be late
            break
    return found


def table(result: dict[str, Any]) -> str:
    """The table of docs/alerts.md."""
    lines = ["| incident | alert | severity | after | summary | labels |", "| --- | --- | --- | --- | --- | --- |"]
    rows = result["figures"]["alerts"]
    for row in sorted(rows, key=lambda row: (row["incident"], not row["expected"], row["after_s"])):
        link = f"[{row['alert']}](#{row['alert'].lower()})"
        summary = _without_ports(row["summary"])
        labels = ", ".join(f"{name}={value}" for name, value in sorted(row["labels"].items()) if name in _ROUTING)
        others = ", ".join(sorted(row["labels"].keys() - set(_ROUTING)))
        labels = _without_ports(f"`{labels}`" * bool(labels) + f"; {others}" * bool(others))
        lines.append(f"| {row['incident']} | {link} | {row['severity']} | {row['after_s']} s | {summary} | {labels} |")
    lines += [f"| {name} | none |  |  |  |  |" for name in result["figures"]["silent"]]
    return "\n".join(lines)


def _without_ports(text: str) -> str:
    """Addresses of this machine with ports and its name left out."""
    text = re.sub(r"127[.]0[.]0[.]1:[0-9]+", "127.0.0.1:PORT", text)
    return re.sub(rf"\b{re.escape(socket.gethostname())}:[0-9]+", "HOST:PORT", text)


def page_with(text: str, result: dict[str, Any]) -> str:
    """docs/alerts.md with the table between its marks."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table(result)}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), json.loads(RESULT.read_text())), encoding="utf-8")
