"""A running ``llamatel serve``, for tests from outside of the process."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.parts import Child

SLOTS = 4
CONTEXT = 8192
FLAGS = ("--", "--threads-http", "40", "-t", "1")


def metric_sum(url: str, name: str, **labels: str) -> float | None:
    """Sum of the samples of this name that have these labels; None without any."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else None


class Serving:
    """A running ``llamatel serve``."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        *arguments: str,
        backend: str = "xllamacpp",
        slots: int = SLOTS,
        context: int = CONTEXT,
        rows: Path | None = None,
        env: Mapping[str, str] | None = None,
        **more_env: str,
    ) -> None:
        """``context``: tokens for each slot; ``rows``: the request log, if not in ``folder``."""
        self.rows = rows or folder / "requests.jsonl"
        self.child = Child(
            [
                sys.executable, "-m", "llamatel.cli.main", "serve", model, "--backend", backend, "--port", "0",
                "-np", str(slots), "-c", str(slots * context), "--metrics-addr", "127.0.0.1:0",
                "--jsonl", self.rows, *arguments, *FLAGS,
            ],
            folder / "serve.log",
            {**(env or {}), **more_env},
        )  # fmt: skip
        self.child.wait_ready(lambda: "metrics" in self.child.output() and "OTLP" in self.child.output(), 60)
        self.url = self.find_output(r"server +(http://\S+)")
        self.metrics_url = self.find_output(r"metrics +(http://\S+)")
        self.page_url = self.metrics_url.removesuffix("/metrics")
        self.server_pid = self.find_server()

    @property
    def pid(self) -> int:
        return self.child.pid

    def find_output(self, pattern: str) -> str:
        found = re.search(pattern, self.child.output())
        assert found is not None, self.child.output()
        return found.group(1)

    def find_server(self) -> int:
        """Return the pid of llama.cpp, the only child process."""
        [pid] = [
            int(pid)
            for children in Path(f"/proc/{self.pid}/task").glob("*/children")
            for pid in children.read_text().split()
        ]
        return pid

    def metric(self, name: str, **labels: str) -> float | None:
        return metric_sum(self.metrics_url, name, **labels)

    def records(self) -> list[dict[str, Any]]:
        *whole, _ = self.rows.read_text().split("\n")  # the last line may be incomplete
        return [json.loads(line) for line in whole]

    def resident_mib(self) -> float:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found.group(1)) / 1024

    def exit_within(self, seconds: float) -> int:
        return self.child.process.wait(seconds)


Start = Callable[..., Serving]


@contextlib.contextmanager
def servings(folder: Path, model: Path, **always: Any) -> Iterator[Start]:
    """Yield a function that starts servers with ``always`` added; at the end all are stopped, without a traceback."""
    started: list[Serving] = []

    def start(*arguments: str, **more: Any) -> Serving:
        started.append(Serving(folder, model, *arguments, **always, **more))
        return started[-1]

    yield start
    for one in started:
        one.child.stop()
        assert "Traceback" not in one.child.output()
