"""Server starts: 60 servers with port 0, stopped or killed, one after another: their metrics have one address."""

from __future__ import annotations

import gc
import os
import re
import signal
import urllib.request
from pathlib import Path

import llamatel
from llamatel.llama import ServerManager
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.records import Completion
from tests.parts import OtlpSink, wait_until
from tests.servers import complete
from tests.tiny_gguf import write_tiny_model

_KINDS = 3
"""Kinds of ends; as many starts are a multiple of it, the last server ends like the third."""


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _series(url: str) -> set[str]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0] for line in lines if "server_port=" in line}


def _observed() -> int:
    return sum(isinstance(each, ObservedServer) for each in gc.get_objects())


def run(folder: Path, starts: int = 60) -> dict[str, object]:
    """Every server gets one request; then it is stopped, or killed and stopped, or killed and left alone."""
    model = write_tiny_model(folder / "tiny.gguf")
    records: list[Completion] = []
    before = _observed()
    with OtlpSink() as sink:
        running = llamatel.init(
            otlp_endpoint=sink.endpoint, otlp_protocol="http/protobuf", metrics_addr="127.0.0.1:0",
            sinks=[lambda record, _: records.append(record)],
        )  # fmt: skip
        url = running.pipeline.metrics_url
        assert url is not None
        try:
            for number in range(starts):
                server = ServerManager(backend="xllamacpp")
                server.start_server(model, port=0, extra_args=["-t", "1"]).wait_until_ready(60)
                assert complete(server.base_url, 2) == 200
                wait_until(lambda: len(records) > number, 60, "the request")  # noqa: B023 - called in this turn
                running.observer.snapshot()
                if number % _KINDS:
                    assert server.info.pid is not None
                    os.kill(server.info.pid, signal.SIGKILL)
                    server.wait(60)
                if number % _KINDS < 2:
                    server.stop_server()
                running.observer.snapshot()
                if number + 1 == _KINDS:
                    early, early_mib = _series(url), _resident_mib()
            del server
            late, late_mib = _series(url), _resident_mib()
            gc.collect()
            observed = _observed() - before
        finally:
            llamatel.shutdown()
        metrics = sink.latest()
    ports = {found for series in late for found in re.findall(r'server_port="(\d+)"', series)}
    exported = {
        (name, tuple(sorted((key, str(value)) for key, value in point.attributes.items())))
        for name, metric in metrics.items()
        for point in metric.points
        if "server.port" in point.attributes
    }
    requests = sum(int(point.value or 0) for point in metrics["llamacpp.requests"].points)
    assert requests == starts, (requests, starts)
    assert len(ports) == 1, ports
    assert late <= early, late - early
    otlp_ports = {dict(attributes)["server.port"] for _, attributes in exported}
    assert otlp_ports == ports, otlp_ports
    assert observed <= 3, observed
    assert late_mib - early_mib < 10, (early_mib, late_mib)
    return {
        "starts": starts, "requests": requests, "series_early": len(early), "series_at_the_end": len(late),
        "otlp_points": len(exported), "ports": len(ports), "servers_in_memory": observed,
        "resident_mib_early": round(early_mib, 1), "resident_mib_at_the_end": round(late_mib, 1),
    }  # fmt: skip
