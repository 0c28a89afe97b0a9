"""Prometheus 3, VictoriaMetrics and vmalert from Debian sid, Alertmanager from Debian: unpacked, not installed."""

from __future__ import annotations

import json
import platform
import shutil
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from . import apt, debian_sid
from .cache import cached
from .missing import MissingPart
from .processes import Child, free_port

_SID = {
    "prometheus": ("prometheus", "promtool"),
    "promtool": ("prometheus", "promtool"),
    "victoria-metrics": ("victoria-metrics",),
    "vmalert": ("victoria-metrics",),
    "kustomize": ("kustomize",),
}
"""Programs from sid, and their packages."""


def sid_program(name: str) -> Path:
    """Return a program from Debian sid. Raises MissingPart."""
    packages = _SID[name]

    def get(folder: Path) -> None:
        work = folder / "work"
        work.mkdir()
        if not debian_sid.unpack(packages, work):
            raise MissingPart(name, f"no Debian sid on this machine's mirror, for {', '.join(packages)}")
        for program in _SID:
            if (found := work / "usr" / "bin" / program).exists():
                found.rename(folder / program)
        shutil.rmtree(work)

    return cached(f"{packages[0]}-sid-{platform.machine()}", get) / name


_TEMPLATES = b"/usr/share/prometheus/alertmanager"
"""The template folder of Debian's Alertmanager. In the unpacked program it is replaced by a relative path of the same
length, so that it runs in its own folder without installation."""


def alertmanager_program() -> Path:
    """Return Debian's Alertmanager, which has to be started in its folder. Raises MissingPart."""

    def get(folder: Path) -> None:
        work = folder / "work"
        work.mkdir()
        if not apt.unpack("prometheus-alertmanager", work):
            raise MissingPart("prometheus-alertmanager", "sudo apt-get install prometheus-alertmanager")
        program = (work / "usr/bin/prometheus-alertmanager").read_bytes()
        relative = b"./" * ((len(_TEMPLATES) - len(b"alertmanager")) // 2) + b"alertmanager"
        assert len(relative) == len(_TEMPLATES)
        (folder / "run").write_bytes(program.replace(_TEMPLATES, relative))
        (folder / "run").chmod(0o755)
        shutil.copytree(work / "usr/share/prometheus/alertmanager", folder / "alertmanager")
        shutil.rmtree(work)

    return cached(f"alertmanager-debian-{platform.machine()}", get) / "run"


class Alertmanager:
    """A running Alertmanager whose only receiver is ``received``, a list of alerts. A context manager.

    Each alert has the time at which it was received, ``received_at``.
    """

    def __init__(self, folder: Path) -> None:
        """Keep data in ``folder``. Raises PartFailed or MissingPart."""
        self.received: list[dict[str, Any]] = []
        received = self.received

        class Hook(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                received.extend({**alert, "received_at": time.time()} for alert in body["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Keep the test's output clean."""

        self._hook = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
        threading.Thread(target=self._hook.serve_forever, daemon=True).start()
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "alertmanager.yml"
        timing = {"group_wait": "100ms", "group_interval": "1s", "group_by": ["..."]}
        hook = {"name": "hook", "webhook_configs": [{"url": f"http://127.0.0.1:{self._hook.server_port}/"}]}
        config.write_text(json.dumps({"route": {"receiver": "hook", **timing}, "receivers": [hook]}))
        self.address = f"127.0.0.1:{free_port()}"
        program = alertmanager_program()
        argv = [f"./{program.name}", f"--config.file={config}", f"--storage.path={folder / 'data'}"]
        argv += [f"--web.listen-address={self.address}", "--cluster.listen-address="]
        self._child = Child(["env", f"--chdir={program.parent}", *argv], folder / "alertmanager.log")
        self._child.wait_ready(lambda: answers(f"http://{self.address}/-/ready"))

    def __enter__(self) -> Alertmanager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()
        self._hook.shutdown()
        self._hook.server_close()


class VictoriaMetrics:
    """A running single-node VictoriaMetrics. A context manager."""

    def __init__(self, folder: Path, scrape: Mapping[str, Any] | None = None) -> None:
        """``scrape`` is what prometheus.yml holds. Raises PartFailed or MissingPart."""
        folder.mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{free_port()}"
        argv = [str(sid_program("victoria-metrics")), f"-storageDataPath={folder / 'data'}", "-search.latencyOffset=0s"]
        argv += [f"-httpListenAddr={self.url.removeprefix('http://')}", "-opentelemetry.usePrometheusNaming"]
        if scrape is not None:
            (folder / "scrape.yml").write_text(json.dumps(scrape))
            argv.append(f"-promscrape.config={folder / 'scrape.yml'}")
        self._child = Child(argv, folder / "victoria-metrics.log")
        self._child.wait_ready(lambda: answers(f"{self.url}/health"))

    def api(self, path: str, **parameters: str | float) -> Any:
        """``data`` of a response of its Prometheus API; raises urllib's HTTPError for a query that it rejects."""
        query = urllib.parse.urlencode({**parameters, "nocache": 1})
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=60) as response:
            return json.load(response)["data"]

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """An instant query's vector: labels and value of each series."""
        return [(row["metric"], float(row["value"][1])) for row in self.api("query", query=promql)["result"]]

    def __enter__(self) -> VictoriaMetrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()


def vmalert(store: VictoriaMetrics, rules: Path, folder: Path, *, interval: str = "1s") -> Child:
    """A running vmalert that evaluates rule files on a store and writes results and alerts back to it."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = [str(sid_program("vmalert")), f"-rule={rules}/*.yml", f"-datasource.url={store.url}"]
    argv += [
        f"-remoteWrite.url={store.url}",
        f"-remoteRead.url={store.url}",
        f"-evaluationInterval={interval}",
        "-rule.evalDelay=0s",
    ]
    address = f"127.0.0.1:{free_port()}"
    child = Child([*argv, f"-httpListenAddr={address}", "-notifier.blackhole"], folder / "vmalert.log")
    child.wait_ready(lambda: answers(f"http://{address}/health"))
    return child


def answers(url: str) -> bool:
    """Whether an HTTP server answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
