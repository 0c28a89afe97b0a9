"""Telemetry in real application servers: every worker has its own, and SIGTERM loses nothing.

The applications call a llama.cpp of another process, so their calls are joined there.
"""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.client_matrix import OtherProcess, environment, of_kind
from tests.conftest import _get
from tests.parts import Child, OtlpSink, free_port, wait_until
from tests.parts.environments import application_servers

pytestmark = pytest.mark.slow

CALLS = 24
APP = """
import os, time
import llamatel, openai

client = openai.OpenAI(base_url=os.environ["MODEL_URL"] + "/v1", api_key="none")

@llamatel.task
def answer():
    messages = [{"role": "user", "content": "Hello"}]
    client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
    time.sleep(0.05)  # so that one worker does not get all requests
"""
WSGI = (
    APP
    + """
llamatel.init(service_name="app")

def application(environ, start_response):
    if environ["PATH_INFO"] == "/answer":
        answer()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""
)
FASTAPI = (
    APP
    + """
from contextlib import asynccontextmanager
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

@asynccontextmanager
async def lifespan(application):
    llamatel.init(service_name="app")
    yield
    llamatel.shutdown()  # uvicorn ends its workers without running exit handlers

application = FastAPI(lifespan=lifespan)

@application.get("/answer")
def get_answer():
    answer()
    return os.getpid()

@application.get("/stream")
async def stream():
    async def tokens():
        with llamatel.span("stream"):
            for number in range(1000):
                yield f"{number} " * 1000
    return StreamingResponse(tokens())

@application.get("/")
def root():
    return os.getpid()
"""
)


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest) -> Path:
    return _get(request, application_servers)


@pytest.fixture
def env(shared_sink: OtlpSink, served: OtherProcess, tmp_path: Path) -> dict[str, str]:
    shared_sink.clear()
    # The collectors are entry points: as if llamatel were installed in that Python.
    metadata = tmp_path / "llamatel-0.dist-info"
    metadata.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (metadata / name).write_text(distribution("llamatel").read_text(name) or "", encoding="utf-8")
    made = environment(shared_sink, LLAMATEL_URL=served.page_url, MODEL_URL=served.url, HOME=str(tmp_path))
    return {**made, "PYTHONPATH": f"{tmp_path}{os.pathsep}{made['PYTHONPATH']}"}


@pytest.fixture
def start(env: dict[str, str], tmp_path: Path) -> Iterator[Callable[[Sequence[str | Path], str], Child]]:
    """Starts a command, waits for its address; it is stopped with the test at the latest."""
    children: list[Child] = []

    def started(command: Sequence[str | Path], url: str) -> Child:
        child = Child(command, tmp_path / "log", env)
        children.append(child)
        child.wait_ready(responds(url), 120)
        return child

    yield started
    for child in children:
        if child.process.poll() is None:
            child.stop()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def responds(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            return bool(get(url))
        except OSError:
            return False

    return ready


COMMANDS = {
    "gunicorn": ("gunicorn", "-w", "2", "--threads", "4"),
    "gunicorn --preload": ("gunicorn", "-w", "2", "--threads", "4", "--preload"),
    "uvicorn": ("uvicorn", "--workers", "2", "--timeout-worker-healthcheck", "120"),
}


@pytest.mark.parametrize("server", COMMANDS)
def test_application_server_workers(
    server: str,
    start: Callable[[Sequence[str | Path], str], Child],
    python: Path,
    shared_sink: OtlpSink,
    tmp_path: Path,
) -> None:
    uvicorn = server == "uvicorn"
    (tmp_path / "app.py").write_text(FASTAPI if uvicorn else WSGI)
    port = free_port()
    where = ("--port", str(port)) if uvicorn else ("--bind", f"127.0.0.1:{port}")
    child = start([python, "-m", *COMMANDS[server], *where, "app:application"], f"http://127.0.0.1:{port}/")
    with ThreadPoolExecutor(8) as pool:
        pids = set(pool.map(get, [f"http://127.0.0.1:{port}/answer"] * CALLS))
    child.stop()  # SIGTERM
    output = child.output()
    assert "Traceback" not in output
    assert len(re.findall("llamatel", output)) == 0, output  # the port that a worker took first is no message
    wait_until(lambda: len(of_kind(shared_sink.spans(), "SERVER")) >= CALLS, 30, "the spans of the server")
    answers, calls = shared_sink.spans("answer"), of_kind(shared_sink.spans(), "CLIENT")
    assert (len(answers), len(calls)) == (CALLS, CALLS)
    assert {str(span.resource["process.pid"]) for span in answers} == pids
    assert len({span.resource["service.instance.id"] for span in answers}) == len(pids)
    assert {call.parent_id for call in calls} == {span.span_id for span in answers}
    joined = {request.parent_id for request in of_kind(shared_sink.spans(), "SERVER")}
    linked = {span_id for request in of_kind(shared_sink.spans(), "SERVER") for _, span_id in request.links}
    assert {call.span_id for call in calls} <= joined | linked
    counts = {
        metric.resource["service.instance.id"]: sum(point.count for point in metric.points)
        for metric in shared_sink.metrics("gen_ai.client.operation.duration")
        if metric.resource["service.name"] == "app"
    }
    assert sum(counts.values()) == CALLS
    assert len(counts) == len(pids)


def test_fastapi_stream_client_disconnects(
    start: Callable[[Sequence[str | Path], str], Child], python: Path, shared_sink: OtlpSink, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(FASTAPI)
    port = free_port()
    child = start([python, "-m", "uvicorn", "--port", str(port), "app:application"], f"http://127.0.0.1:{port}/")
    for _ in range(3):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/stream", timeout=60) as answer:
            answer.read(100)
    wait_until(lambda: len(shared_sink.spans("stream")) == 3, 30, "the spans of streams")
    child.stop()
    assert "Traceback" not in child.output()
    assert "detach" not in child.output()
    assert {(span.status, span.events) for span in shared_sink.spans("stream")} == {("UNSET", ())}


STREAMLIT = (
    APP
    + """
import streamlit as st

llamatel.init(service_name="app")

answer()
st.write("runs: " + str(len(llamatel.report().document["requests"])))
st.write("trace: " + llamatel.last_trace().spans[0].name)
st.button("again")
"""
)


def test_streamlit_reruns_keep_telemetry(  # noqa: PLR0917 - fixtures
    start: Callable[[Sequence[str | Path], str], Child],
    python: Path,
    shared_sink: OtlpSink,
    served: OtherProcess,
    tmp_path: Path,
    browser: object,
) -> None:
    """Each session and each click runs the script again, on other threads."""
    from playwright.sync_api import Browser, expect

    assert isinstance(browser, Browser)
    (tmp_path / "app.py").write_text(STREAMLIT)
    port = free_port()
    command: list[str | Path] = [
        python, "-m", "streamlit", "run", tmp_path / "app.py", "--server.headless", "true", "--server.port", str(port),
        "--server.address", "127.0.0.1", "--browser.gatherUsageStats", "false",
    ]  # fmt: skip
    child = start(command, f"http://127.0.0.1:{port}/_stcore/health")
    pages = [browser.new_page() for _ in range(2)]
    for page in pages:
        page.goto(f"http://127.0.0.1:{port}/")
    for page in pages:
        expect(page.get_by_text("trace: answer")).to_be_visible(timeout=60_000)
    for _ in range(2):
        before = len(of_kind(shared_sink.spans(), "CLIENT"))
        pages[0].get_by_role("button", name="again").click()
        wait_until(lambda: len(of_kind(shared_sink.spans(), "CLIENT")) > before, 60, "the call of a rerun")  # noqa: B023
    for page in pages:
        page.close()
    child.stop()
    assert "Traceback" not in child.output(), child.output()
    answers = shared_sink.spans("answer")
    assert len(answers) == 4
    assert len({span.resource["service.instance.id"] for span in answers}) == 1
    counts = [
        sum(point.count for point in metric.points)
        for metric in shared_sink.metrics("gen_ai.client.operation.duration")
        if metric.resource["service.name"] == "app"
    ]
    assert counts == sorted(counts)  # counters go on
    assert counts[-1] == 4


MARIMO = """
import marimo

app = marimo.App()

@app.cell
def _():
    import llamatel
    from llamatel.llama import LlamaCppClient, ServerManager
    llamatel.init(metrics_addr="none")
    return LlamaCppClient, ServerManager, llamatel

@app.cell
def _(ServerManager):
    for _ in range(2):  # a cell that marimo runs again
        manager = ServerManager()
        manager.start_server(MODEL, ctx_size=1024, port=PORT, extra_args=["-t", "1"])
        manager.wait_until_ready(timeout=60)
    return (manager,)

@app.cell
def _(LlamaCppClient, llamatel, manager):
    with llamatel.span("my task"):
        LlamaCppClient(manager.base_url).complete("x", n_predict=5)
    shown = llamatel.last_trace()
    shown
    return

if __name__ == "__main__":
    app.run()
"""


def test_marimo_is_a_notebook(env: dict[str, str], python: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Marimo's own kernel runs the cells: spans are kept, and a server may be started again on its port."""
    notebook = tmp_path / "notebook.py"
    notebook.write_text(MARIMO.replace("MODEL", repr(str(tiny_model))).replace("PORT", str(free_port())))
    page = tmp_path / "page.html"
    done = subprocess.run(
        [str(python), "-m", "marimo", "export", "html", str(notebook), "-o", str(page)],
        env={**env, "LLAMATEL_URL": "none"}, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    for name in ("my task", "text_completion", "prefill", "decode"):
        assert name in text, done.stderr


ZERO_CODE = (
    APP
    + """
import urllib3
from llamatel.llama import LlamaCppClient

answer()
LlamaCppClient(os.environ["MODEL_URL"]).complete("x", n_predict=4)
urllib3.request("GET", os.environ["MODEL_URL"] + "/health")
time.sleep(4)  # reports of calls are repeated
"""
)
INSTRUMENT = "import sys; from opentelemetry.instrumentation.auto_instrumentation import run; run()"


def test_own_requests_are_not_traced(
    env: dict[str, str], python: Path, shared_sink: OtlpSink, served: OtherProcess, tmp_path: Path
) -> None:
    """As ``opentelemetry-instrument``, with instrumentations of urllib3, requests, httpx and gRPC installed."""
    (tmp_path / "script.py").write_text(ZERO_CODE)
    more = {"OTEL_TRACES_EXPORTER": "otlp_proto_http", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    done = subprocess.run(
        [str(python), "-c", INSTRUMENT, "python", str(tmp_path / "script.py")],
        env={**env, **more, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wait_until(lambda: len(of_kind(shared_sink.spans(), "SERVER")) >= 2, 30, "the spans of the server")
    requests = [span for span in shared_sink.spans() if span.name in ("GET", "POST")]
    urls = [str(span.attributes.get("http.url", span.attributes.get("url.full"))) for span in requests]
    assert f"{served.url}/health" in urls  # the instrumentation works
    calls = {span.span_id for span in of_kind(shared_sink.spans(), "CLIENT") if span.name.startswith(("chat", "text_"))}
    assert len(calls) == 2
    # The application's own: the call itself (the first one to a server is not known to be one before its response).
    assert set(urls) <= {f"{served.url}/health", f"{served.url}/v1/chat/completions"}
