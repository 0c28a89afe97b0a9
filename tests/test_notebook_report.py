"""``last_trace()`` and ``report()``: correct figures, one file, no network, nothing kept without a request."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import llamatel
from llamatel import runtime
from llamatel.errors import INSTALL_FROM, RequestError, UsageError
from llamatel.llama import LlamaCppClient, ServerManager, parse_gguf_header
from llamatel.llama.client.result import Result
from llamatel.llama.interactive import interactive
from llamatel.plan import ServerSettings, cache_plan, shape_from_gguf
from llamatel.telemetry.kept_spans import KeptSpan, KeptSpans, in_order
from llamatel.ui import notebook
from llamatel.ui.request_statistics import RequestStatistics
from llamatel.ui.view.run_report import report_html
from llamatel.ui.view.svg_charts import dots, stacked_areas
from llamatel.ui.view.trace_view import bars
from tests.notebooks import cells, run_notebook
from tests.samples import completion
from tests.servers import complete, without_settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PNG = b"\x89PNG\r\n\x1a\n"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tiny_model: Path) -> dict[str, Any]:
    """A finished run of three requests below a workflow with a hostile name: its trace and report."""
    with pytest.MonkeyPatch.context() as patch:
        without_settings(patch)
        running = llamatel.init(service_name=HOSTILE, keep_traces=True, metrics_addr="none")
        try:
            return run_three_requests(tiny_model, running)
        finally:
            llamatel.shutdown()


def run_three_requests(model: Path, running: runtime.Runtime) -> dict[str, Any]:
    @llamatel.workflow(name=HOSTILE)
    def work() -> None:
        with llamatel.span("inner"):
            pass

    with ServerManager(backend="xllamacpp") as server:
        server.start_server(model, ctx_size=1024, n_parallel=2, port=0, alias=HOSTILE, extra_args=["-t", "1"])
        server.wait_until_ready(120)
        for tokens in (2, 30, 8):
            assert complete(server.base_url, tokens) == 200
            running.observer.snapshot()
            time.sleep(1.05)  # two points of a history are a second apart
        served = llamatel.report()
        work()
        trace = llamatel.last_trace()
        with LlamaCppClient(server.base_url) as client:
            with llamatel.span("asks"):
                client.complete("x", n_predict=5, ignore_eos=True)
            sent = llamatel.last_trace()
            with llamatel.span("leaves"), client.complete("x", n_predict=900, ignore_eos=True, stream=True) as stream:
                next(stream)
            return {"report": served, "trace": trace, "sent": sent, "left": until_joined(running)}


def until_joined(running: runtime.Runtime) -> notebook.Trace:
    """The last trace, once it has the server's spans of an abandoned stream."""
    end = time.monotonic() + 10
    while not any(span.kind == "SERVER" for span in llamatel.last_trace().spans):
        assert time.monotonic() < end
        time.sleep(0.02)
    return llamatel.last_trace()


def test_trace_shows_call_and_server_once(run: dict[str, Any]) -> None:
    outside = ("queue", "wait", "network.request", "network.response")
    names = [(row.name, row.depth) for row in bars(run["sent"].spans) if row.name not in outside]
    server = f"generate_content {HOSTILE}"
    assert names == [("asks", 0), ("text_completion", 1), (server, 2), ("prefill", 3), ("decode", 3)]


def test_last_trace_of_a_stream_left(run: dict[str, Any]) -> None:
    assert [row.name for row in bars(run["left"].spans)][:2] == ["leaves", "text_completion"]


def test_last_trace_with_own_provider() -> None:
    program = (
        "import llamatel; from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider()); llamatel.init(metrics_addr='none', keep_traces=True)\n"
        "with llamatel.span('mine'): pass\nprint(llamatel.last_trace())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "mine " in done.stdout, done.stderr


def test_last_trace_is_the_latest(run: dict[str, Any]) -> None:
    trace = run["trace"]
    assert [(span.name, depth) for span, depth in in_order(trace.spans)] == [
        (f"invoke_workflow {HOSTILE}", 0),
        ("inner", 1),
    ]
    text = str(trace).splitlines()
    assert text[0] == f"trace {trace.trace_id}"
    assert [line.split()[0] for line in text[1:]] == ["invoke_workflow", "inner"]
    assert repr(trace) == str(trace)


def test_report_shows_trace_once(run: dict[str, Any]) -> None:
    trace_id = "a" * 32
    document = dict(run["report"].document)
    document["requests"] = [{**one, "trace_id": trace_id} for one in document["requests"]]
    spans = [KeptSpan(trace_id, 1, None, "whole", "INTERNAL", 0.0, 9.0, False, {})]
    spans += [KeptSpan(trace_id, n, 1, f"part {n}", "INTERNAL", 1.0 * n, 1.0 * n, False, {}) for n in range(2, 250)]
    html = report_html(document, [], lambda _: spans, "run")
    assert (html.count(">whole<"), html.count(f"in trace {trace_id}, above")) == (1, 2)
    # Spans that are not drawn are counted.
    assert html.count(">part ") == 199
    assert "and 49 more spans" in html
    assert str(notebook.Trace(spans)).endswith("and 49 more spans")


def test_report_figures(run: dict[str, Any]) -> None:
    report = run["report"]
    summary = report.document["summary_of_all"]
    assert summary["requests"]["ok"] == 3
    assert summary["tokens"]["output"] == 2 + 30 + 8
    html = report.html
    assert '<div class="card"><b>3</b> <span>requests</span></div>' in html
    assert '<div class="card"><b>40</b> <span>tokens out</span></div>' in html
    slowest = max(report.document["requests"], key=lambda one: one["ended_at"] - one["arrived_at"])
    assert html.index(slowest["trace_id"]) == min(html.index(one["trace_id"]) for one in report.document["requests"])
    assert html.count("<svg") == 2
    assert "tokens in the KV cache" in html
    assert "capacity, 1,024 tokens" in html
    assert html.count(">prefill<") == 3


def test_report_is_self_contained(run: dict[str, Any], tmp_path: Path, browser: Browser) -> None:
    path = run["report"].save(tmp_path / "report.html")
    text = path.read_text()
    assert "://" not in text
    assert "<script" not in text
    requested: list[str] = []
    complaints: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    assert (requested, complaints) == ([path.as_uri()], [])
    assert page.inner_text("h1") == f"Report of {HOSTILE}"
    # The drawing is inside the visible area.
    for box in [mark.bounding_box() for mark in page.query_selector_all("svg polygon, svg circle, .trace td div")]:
        assert box is not None
        assert box["width"] > 0
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 1280
    page.set_content(run["report"]._repr_html_())
    assert (len(page.frames), page.inner_text("h2")) == (1, "Latency")
    page.set_content(run["trace"].html)
    assert page.inner_text("tr:first-child td").strip() == f"invoke_workflow {HOSTILE}"
    assert complaints == []
    page.close()


def test_png_pictures(run: dict[str, Any], tmp_path: Path) -> None:
    threads = threading.active_count()
    for made, path in ((run["report"], tmp_path / "report.png"), (run["trace"], tmp_path / "trace.png")):
        made.save(path)
        written = path.read_bytes()
        assert written.startswith(PNG)
        assert len(written) > 5000
    assert "matplotlib.pyplot" not in sys.modules or threading.active_count() == threads
    with pytest.raises(UsageError, match=r"ends neither in \.html nor in \.png"):
        run["trace"].save(tmp_path / "trace.svg")


def test_png_without_matplotlib(run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[plot\]' in a clone"):
        run["report"].png()


def test_last_trace_not_kept_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)
    monkeypatch.setattr(runtime._Process, "last_run", None)
    with pytest.raises(UsageError, match=r"llamatel\.init\(\) first"):
        llamatel.report()
    llamatel.init(metrics_addr="none", keep_traces=False)
    threads = [thread.name for thread in threading.enumerate()]
    try:
        assert "llamatel-snapshots" not in threads
        with pytest.raises(UsageError, match="keep_traces=True"):
            llamatel.last_trace()
        assert "<h2>Slowest requests</h2><p>none</p>" in llamatel.report().html
        with pytest.raises(UsageError, match="how many spans to keep"):
            llamatel.init(keep_traces=-1)
    finally:
        llamatel.shutdown()


def test_kept_spans_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)
    running = llamatel.init(metrics_addr="none", keep_traces=10)
    try:
        with pytest.raises(UsageError, match="no trace has finished yet"):
            llamatel.last_trace()
        for number in range(50):
            with llamatel.span(f"span {number}"):
                pass
        assert isinstance(running.pipeline.kept_spans, KeptSpans)
        assert len(running.pipeline.kept_spans._spans) == 10
        assert llamatel.last_trace().spans[0].name == "span 49"
    finally:
        llamatel.shutdown()
    end = time.monotonic() + 10
    while any(thread.name == "llamatel-snapshots" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_trace_bars_to_scale(run: dict[str, Any]) -> None:
    rows = bars(run["trace"].spans)
    assert rows[0].start == 0
    for row in rows[1:]:
        assert 0 <= row.start <= row.start + row.length <= rows[0].length + 1e-9
    assert bars(()) == []


def test_chart_gaps() -> None:
    times = (0.0, 2.0, 4.0, 6.0, 8.0, 600.0, 602.0)
    values = (1.0, 2.0, None, 3.0, 4.0, 5.0, 6.0)
    drawn = stacked_areas("cache", [("red", list(zip(times, values, strict=True)))], 10.0)
    shapes = [points.split() for points in re.findall(r'points="([^"]*)"', drawn)]
    # Down at 4 s, and no samples from 8 s to 600 s: three stretches of two samples, each there and back.
    assert [len(points) for points in shapes] == [4, 4, 4]


def test_charts_extreme_values() -> None:
    for points in ([(1.0, 0.0)], [(1.0, 5.0), (1.0, 5.0)], [(0.0, 1e-9), (1e9, 1e12)]):
        assert "nan" not in dots("speed", points, "red").lower()
        assert "nan" not in stacked_areas("cache", [("red", points), ("blue", points)], 0.0).lower()


def test_html_representations(tiny_model: Path) -> None:
    shape = shape_from_gguf(parse_gguf_header(tiny_model))
    plan = cache_plan(shape, ServerSettings(ctx_size=512, parallel=1))
    assert "131,072 bytes" in plan._repr_html_()
    assert "GQA" in shape._repr_html_()
    statistics = RequestStatistics()
    statistics(completion())
    assert "1 request" in statistics.summary()._repr_html_()
    shown = Result({"prompt_tokens": 3, "completion_tokens": None})._repr_html_()
    assert ">prompt_tokens<" in shown
    assert "completion_tokens" not in shown
    assert "<script" not in Result({"prompt_tokens": HOSTILE, HOSTILE: 1})._repr_html_()


@pytest.mark.slow
def test_jupyter_keeps_traces(tmp_path: Path, tiny_model: Path) -> None:
    ran = run_notebook(
        cells(
            "import llamatel; llamatel.init(metrics_addr='none')",
            "with llamatel.span('outer'):\n    with llamatel.span('inner'): pass\nllamatel.last_trace()",
            "llamatel.report()",
            f"from llamatel.llama import parse_gguf_header\nfrom llamatel.plan import shape_from_gguf\n"
            f"shape_from_gguf(parse_gguf_header({str(tiny_model)!r}))",
            "llamatel.shutdown()",
        ),
        tmp_path,
    )
    trace, report, shape = ran.shown("text/html")
    assert trace.count("<tr>") == 2
    assert '<div class="llamatel">' in report
    assert "<iframe" not in report
    assert "GQA" in shape


def test_script_keeps_no_traces() -> None:
    program = "import llamatel; r = llamatel.init(metrics_addr='none'); print(r.pipeline.kept_spans)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    assert not interactive()
    assert re.search("Spans are kept", llamatel.last_trace.__doc__ or "")


# -- where a person works ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "answer", "expected"),
    [
        ("marimo", {"running_in_notebook": lambda: True}, True),
        ("marimo", {"running_in_notebook": lambda: False}, False),
        ("marimo", {}, False),
        ("streamlit", {"runtime": SimpleNamespace(exists=lambda: True)}, True),
        ("streamlit", {"runtime": SimpleNamespace(exists=lambda: False)}, False),
        ("IPython", {"get_ipython": lambda: None}, False),
    ],
)
def test_interactive_notebooks(
    monkeypatch: pytest.MonkeyPatch, module: str, answer: dict[str, Any], expected: bool
) -> None:
    """Stand-ins for the libraries, by the functions that they document."""
    for name in ("IPython", "marimo", "streamlit"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**answer))
    assert interactive() is expected


def test_last_trace_and_report_after_shutdown(no_settings: None) -> None:
    llamatel.init(service_name="over", metrics_addr="none", keep_traces=True)
    with llamatel.span("last"):
        pass
    llamatel.shutdown()
    assert [span.name for span in llamatel.last_trace().spans] == ["last"]
    assert "Report of over" in llamatel.report().html


def test_warnings_on_top(no_settings: None) -> None:
    text = "127.0.0.1:8090: the KV pool is full <b>"
    trace = notebook.Trace([KeptSpan("a" * 32, 1, None, "whole", "INTERNAL", 0.0, 9.0, False, {})], [text])
    assert str(trace).startswith(f"warning: {text}\ntrace aaaa")
    assert trace.html.index("the KV pool is full &lt;b&gt;") < trace.html.index("trace aaaa")


def test_report_warns_of_failed_calls(no_settings: None, tiny_model: Path) -> None:
    llamatel.init(metrics_addr="none", keep_traces=True)
    try:
        with ServerManager(backend="xllamacpp") as server:
            server.start_server(tiny_model, ctx_size=512, n_parallel=1, port=0).wait_until_ready(60)
            with LlamaCppClient(server.base_url) as client, pytest.raises(RequestError):
                client.complete("again " * 900)
            report = llamatel.report()
    finally:
        llamatel.shutdown()
    html = report._repr_html_()
    assert "a call failed: 400 exceed_context_size_error: request (" in html
    assert html.index("a call failed") < html.index("Latency")
    assert "warning: a call failed" in repr(report)


LONG_NAME = "Qwen2.5-Coder-7B-Instruct-Q4_K_M.gguf"


@pytest.mark.parametrize("dark", [False, True])
def test_trace_in_notebook_styles(browser: Browser, dark: bool) -> None:
    """JupyterLab's and nbconvert's style of tables: fixed columns, cut text. No name covers a duration or a bar."""
    spans = [
        KeptSpan("a" * 32, 1, None, "invoke_workflow a long name of a workflow", "INTERNAL", 0.0, 0.009, False, {}),
        KeptSpan("a" * 32, 2, 1, f"chat {LONG_NAME}", "CLIENT", 0.001, 0.008, False, {"gen_ai.usage.output_tokens": 9}),
        KeptSpan("a" * 32, 3, 2, f"generate_content {LONG_NAME}", "SERVER", 0.002, 0.007, False, {}),
        KeptSpan("a" * 32, 4, 3, "decode", "INTERNAL", 0.004, 0.007, False, {}),
    ]
    jupyter = (
        ".out table { table-layout: fixed; border: none; font-size: 12px; margin: 0 auto 1em } .out td, .out th { "
        "text-align: right; vertical-align: middle; padding: 0.5em; line-height: normal; white-space: normal; "
        "max-width: none; border: none } .out tbody tr:nth-child(odd) { background: #8882 }"
    )
    colours = "background: #111; color: #eee" if dark else "background: #fff; color: #111"
    page = browser.new_page(viewport={"width": 760, "height": 500})
    page.set_content(
        f'<style>{jupyter} body {{ {colours} }}</style><div class="out">{notebook.Trace(spans).html}</div>'
    )
    for row in page.query_selector_all("tr"):
        name, time_cell, bar = (cell.bounding_box() for cell in row.query_selector_all("td"))
        assert name is not None
        assert time_cell is not None
        assert bar is not None
        assert name["x"] + name["width"] <= time_cell["x"] + 0.5
        assert time_cell["x"] + time_cell["width"] <= bar["x"] + 0.5
        assert bar["x"] + bar["width"] <= 760
        assert bar["width"] > 200
    assert page.evaluate("document.documentElement.scrollWidth") <= 760
    page.close()


def test_install_commands_are_consistent() -> None:
    root = Path(__file__).parents[1]
    pages = [
        *root.glob("*.md"),
        *root.glob("docs/*.md"),
        *root.glob("examples/*.ipynb"),
        *root.glob("llamatel/**/*.py"),
    ]
    found = {
        (page.name, place)
        for page in pages
        for place in re.findall(r"pip install (?:-q )?'([\w./]+)\[", page.read_text(encoding="utf-8"))
    }
    assert {place for _, place in found} <= {INSTALL_FROM}, found
