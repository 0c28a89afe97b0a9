"""Draws the dashboards from a real Prometheus, after twelve minutes with five servers: for docs/images.

    python -m tests.dashboard_pictures NPM_FOLDER     # see dashboards/panels/draw.py

Load, a restart, a crash loop, a full KV pool, failing requests, a router that swaps models, a server without a log; the
GPU is replayed from a recording.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.acceptance.incident_day import Fleet, _config, _export, _in_thread, _kill_server
from tests.load import Request, chat, completion, mixed_load
from tests.parts import Prometheus, accepts, free_port, llama_server, wait_until
from tests.parts.monitoring import Alertmanager
from tests.tiny_gguf import write_tiny_model

MINUTES = float(os.environ.get("PICTURES_MINUTES", "12"))
_ROOT = Path(__file__).parents[1]
IMAGES = Path(os.environ.get("PICTURES_OUT") or _ROOT / "docs" / "images")
_STORY = "Once upon a time there was a llama that answered questions. "


def _router(fleet: Fleet) -> int:
    models = fleet.folder / "models"
    models.mkdir()
    for name in ("embedder-small", "qwen-coder", "summary"):
        write_tiny_model(models / f"{name}.gguf", layers=4)
    port, log = free_port(), fleet.folder / "router.server.log"
    argv = [str(llama_server()), "--models-dir", str(models), "--models-max", "2", "--metrics", "--port", str(port)]
    fleet.start("router.llama", [*argv, "-np", "2", "-c", "2048", "-t", "1", "--log-file", str(log)])
    wait_until(lambda: accepts(port), 60, "the router listens")
    fleet.attach("router", f"http://127.0.0.1:{port}", "--log", str(log))
    return port


def _scene(fleet: Fleet) -> None:
    """Start the servers and their load."""
    recorded = [sys.executable, "-m", "tests.recorded_gpu", "serve"]
    slow = write_tiny_model(fleet.folder / "chat-8b.gguf", embedding=512, layers=6, heads=8, kv_heads=2)
    port, target = free_port(), f"127.0.0.1:{free_port()}"
    words = ["--port", str(port), "--backend", "xllamacpp", "--alias", "chat-8b", "-np", "4", "-c", "8192"]
    fleet.start("chat", [*recorded, str(slow), *words, "--metrics-addr", target, "--", "-lv", "4", "-t", "1"])
    fleet.targets[target] = "chat"
    wait_until(lambda: accepts(port), 300, "the server listens")
    shared = [
        chat(_STORY * 6 + f"Question {number % 7}?", 40 + number % 60, stream=bool(number % 2)) for number in range(50)
    ]
    fleet.load(port, [*shared, *mixed_load(50, context=2048)], 3, 0.6)
    port, _ = fleet.serve("code", "-kvu", "--alias", "code", slots=4, context=1024)
    late = partial(fleet.load, port, [completion(f"{number} {_STORY}" * 8, 800) for number in range(4)], 4, 5.0)
    fleet.serve("restarts", "--restart", "on-failure", "--max-restarts", "50", "--alias", "drafts")
    log_less, _ = fleet.llama("polled")
    fleet.attach("polled", f"http://127.0.0.1:{log_less}")
    failing, _ = fleet.serve("translate", "--alias", "translate")
    router = _router(fleet)
    names = ("qwen-coder", "summary", "qwen-coder", "embedder-small")
    fleet.load(router, [_model(completion(_STORY, 30), name) for name in names], 1, 6.0)
    _later(0.35, partial(_kill_server, fleet.children["restarts"], 4))
    _later(0.45, late)
    _later(0.5, partial(fleet.load, failing, [chat("again " * 3000, 4)], 1, 1.5))


def _model(request: Request, name: str) -> Request:
    assert isinstance(request.body, dict)
    request.body["model"] = name
    return request


def _later(share: float, work: Any) -> None:
    def run() -> None:
        time.sleep(share * MINUTES * 60)
        work()

    _in_thread(run)


def main() -> None:
    """Run the scene and draw it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all that was started is stopped
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        fleet = Fleet(folder, write_tiny_model(folder / "tiny.gguf", embedding=256, layers=4), stack)
        _scene(fleet)
        fleet.discover()
        rules = _export(folder / "export", "none")
        alertmanager = stack.enter_context(Alertmanager(folder / "alertmanager"))
        config = _config(folder, rules, alertmanager)
        prometheus = stack.enter_context(Prometheus(config, folder / "prometheus"))
        started_at = time.time()
        time.sleep(MINUTES * 60)
        print(f"{prometheus.url} from {started_at:.0f} to {time.time():.0f}", flush=True)
        draw = [sys.executable, str(_ROOT / "dashboards" / "panels" / "draw.py"), "--npm", sys.argv[1], "--prometheus"]
        draw += [prometheus.url, "--out", str(IMAGES), "--minutes", f"{MINUTES:g}"]
        subprocess.run(draw, check=True)
        if hold := os.environ.get("PICTURES_HOLD_S"):
            time.sleep(float(hold))


if __name__ == "__main__":
    main()
