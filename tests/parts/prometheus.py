"""Prometheus and promtool: from PATH, else Debian's package, unpacked into the cache but not installed."""

from __future__ import annotations

import json
import platform
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import URLError

from . import apt
from .cache import cached, say
from .missing import MissingPart
from .processes import Child, free_port, wait_until

PROGRAMS = ("prometheus", "promtool")


def _unpack(folder: Path) -> None:
    say("getting Debian's prometheus package (19 MB)")
    work = folder / "work"
    work.mkdir()
    if not apt.unpack("prometheus", work):
        raise MissingPart("prometheus", "sudo apt-get install prometheus")
    for program in PROGRAMS:
        (work / "usr" / "bin" / program).rename(folder / program)
    shutil.rmtree(work)


def prometheus_program(name: str) -> Path:
    """``prometheus`` or ``promtool``. Raises MissingPart."""
    on_path = [shutil.which(program) for program in PROGRAMS]
    if all(on_path):
        return Path(str(on_path[PROGRAMS.index(name)]))
    return cached(f"prometheus-debian-{platform.machine()}", _unpack) / name


def scrape_config(*addresses: str, interval: str = "250ms", rules: Sequence[Path] = ()) -> dict[str, Any]:
    """A configuration that scrapes ``HOST:PORT`` addresses as job ``llamatel``, with rule files if any."""
    return {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [{"job_name": "llamatel", "static_configs": [{"targets": list(addresses)}]}],
    }


class Prometheus:
    """A running Prometheus. A context manager."""

    def __init__(
        self,
        config: Mapping[str, Any],
        folder: Path,
        *,
        program: Path | None = None,
        features: str = "exemplar-storage",
    ) -> None:
        """Keep data in ``folder``. ``config`` is what prometheus.yml holds; ``program`` is another Prometheus.

        Raises PartFailed or MissingPart.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{free_port()}"
        configuration = folder / "prometheus.yml"
        configuration.write_text(json.dumps(config))  # JSON is YAML
        self.child = Child(
            [
                program or prometheus_program("prometheus"),
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                f"--enable-feature={features}",
            ],
            folder / "prometheus.log",
        )
        self.child.wait_ready(self._ready)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def api(self, path: str, **parameters: str | float) -> Any:
        """``data`` of an answer of its HTTP API; raises urllib's HTTPError for a query that it refuses."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=60) as answer:
            return json.load(answer)["data"]

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """An instant query's vector: labels and value of each series."""
        return [(row["metric"], float(row["value"][1])) for row in self.api("query", query=promql)["result"]]

    def query_range(
        self, promql: str, seconds: float = 60, step: float = 1
    ) -> list[tuple[dict[str, str], list[float]]]:
        """A range query over the last ``seconds``: labels and values of each series."""
        now = time.time()
        data = self.api("query_range", query=promql, start=now - seconds, end=now, step=step)
        return [(row["metric"], [float(value) for _, value in row["values"]]) for row in data["result"]]

    def wait_for(self, promql: str, timeout: float = 20.0) -> list[tuple[dict[str, str], float]]:
        """Wait until the query returns at least one series, and return the result. Raises TimeoutError."""
        return wait_until(lambda: self.query(promql), timeout, f"an answer to {promql}", every=0.1)

    def targets(self) -> list[dict[str, Any]]:
        """The active targets, each with ``health``, ``lastError`` and ``scrapeUrl``."""
        return list(self.api("targets")["activeTargets"])

    def close(self) -> int:
        """SIGTERM. Returns its exit status."""
        return self.child.stop()

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
