"""Arize Phoenix shows tasks, calls and server phases of one trace, with each token counted once; takes screenshots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.client_matrix import ROOT, OtherProcess, environment
from tests.parts import OtlpSink, chromium_program, wait_until
from tests.parts.phoenix import PROJECT, Phoenix
from tests.tiny_gguf import write_tiny_model

IMAGES = ROOT / "docs" / "images"
TASKS = 8
CALLS = 2
"""Of each task."""
PROGRAM = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
import llamatel, openai
from llamatel.llama import ServerManager
where, tasks, calls = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
llamatel.init(service_name="research", metrics_addr="none")
used = []

@llamatel.task(arguments=True)
def summarise(client, topic):
    for step in range(calls):
        messages = [{"role": "user", "content": f"Summarise {topic}, step {step}"}]
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12)
        used.append((answer.usage.prompt_tokens, answer.usage.completion_tokens))

@llamatel.workflow
def research(client, number):
    summarise(client, f"topic {number}")

with ServerManager() as server:
    url = where
    if not where.startswith("http"):
        flags = ["-c", "8192", "-np", "8", "-t", "1", "--jinja"]
        url = server.start_server(where, port=0, alias="tiny", extra_args=flags).wait_until_ready(120).base_url
    client = openai.OpenAI(base_url=url + "/v1", api_key="none")
    client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=2)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: research(client, number), range(tasks)))
assert llamatel.shutdown(20)
print(json.dumps([sum(column) for column in zip(*used)]))
"""
SPANS = """{ projects { edges { node { name id tokenCountPrompt tokenCountCompletion tokenCountTotal
  spans(first: 1000) { edges { node { id name spanKind parentId statusCode tokenCountTotal
    cumulativeTokenCountTotal attributes spanId trace { traceId } } } } } } } }"""


def run(folder: Path) -> dict[str, Any]:
    """With the server in the same process and GenAI attributes, and in another one with those of OpenInference."""
    found: dict[str, Any] = {}
    model = write_tiny_model(folder / "tiny.gguf")
    with Phoenix(folder) as phoenix, OtlpSink() as sink:
        for project in ("genai", "openinference"):
            traces = {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{phoenix.url}/v1/traces",
                "OTEL_RESOURCE_ATTRIBUTES": f"{PROJECT}={project}",
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY",
                **({"LLAMATEL_OPENINFERENCE": "true"} if project == "openinference" else {}),
            }
            found[project] = _measure(phoenix, sink, project, traces, model)
        _screenshots(phoenix)
    return found


def _measure(phoenix: Phoenix, sink: OtlpSink, project: str, traces: dict[str, str], model: Path) -> dict[str, Any]:
    same, folder = project == "genai", model.parent
    elsewhere = None if same else OtherProcess(sink, model, folder, **traces)
    try:
        where = str(model) if elsewhere is None else elsewhere.url
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, where, str(TASKS), str(CALLS)],
            env=environment(sink, **traces, LLAMATEL_URL="none" if elsewhere is None else elsewhere.page_url),
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    finally:
        if elsewhere is not None:
            elsewhere.child.stop()
    used = json.loads(done.stdout)
    expected = TASKS * CALLS
    spans = wait_until(lambda: _complete(phoenix, project, expected), 60, "the spans in Phoenix", every=0.5)
    [about] = [edge["node"] for edge in phoenix.query(SPANS)["projects"]["edges"] if edge["node"]["name"] == project]
    roots = [span for span in spans if span["name"] == "invoke_workflow research"]
    mine = [span for span in spans if span["trace"] in [root["trace"] for root in roots]]
    calls = [span for span in mine if span["name"] == "chat tiny"]
    requests = [span for span in mine if _group(span["name"]) == "request"]
    first = sum(int(span["tokenCountTotal"]) for span in spans if span["name"] == "chat tiny" and span not in calls)
    kinds: dict[str, set[str]] = {}
    for span in mine:
        kinds.setdefault(_group(span["name"]), set()).add(span["spanKind"])
    figures = {
        "traces": len(roots),
        "calls": len(calls),
        "requests joined": sum(request["parentId"] in [call["spanId"] for call in calls] for request in requests),
        "prefill spans": sum(span["name"] == "prefill" for span in mine),
        "decode spans": sum(span["name"] == "decode" for span in mine),
        "tokens by the responses": sum(used),
        "tokens of the traces in Phoenix": sum(int(root["cumulativeTokenCountTotal"]) for root in roots),
        "tokens of the project in Phoenix, without the first call": int(about["tokenCountTotal"]) - first,
        "kinds": {name: sorted(found) for name, found in sorted(kinds.items())},
    }
    assert figures["traces"] == TASKS, figures
    assert {figures[name] for name in ("calls", "requests joined", "prefill spans", "decode spans")} == {expected}, (
        figures
    )
    assert figures["tokens of the traces in Phoenix"] == sum(used), figures
    # In another process the first request may be linked with its call: then both have its tokens.
    assert int(about["tokenCountTotal"]) - sum(used) in ((first,) if same else (first, 2 * first)), figures
    assert kinds["chat tiny"] == {"llm"}, kinds
    assert kinds["request"] == {"chain"}, kinds
    assert all("Summarise" in call["attributes"] for call in calls)
    if not same:
        assert kinds["summarise"] == kinds["prefill"] == kinds["decode"] == {"chain"}, kinds
    return figures


def _complete(phoenix: Phoenix, project: str, expected: int) -> list[dict[str, Any]]:
    """The spans of a project, once all requests are there."""
    for edge in phoenix.query(SPANS)["projects"]["edges"]:
        if edge["node"]["name"] == project:
            spans = [one["node"] for one in edge["node"]["spans"]["edges"]]
            if sum(span["name"] == "decode" for span in spans) > expected:
                return spans
    return []


def _group(name: str) -> str:
    return "request" if name.startswith("generate_content") else name


def _screenshots(phoenix: Phoenix) -> None:
    """One trace with OpenInference attributes, and the list of spans, for the documentation."""
    projects = phoenix.query(SPANS)["projects"]["edges"]
    [node] = [edge["node"] for edge in projects if edge["node"]["name"] == "openinference"]
    root = next(edge["node"] for edge in node["spans"]["edges"] if edge["node"]["name"] == "invoke_workflow research")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=chromium_program(), args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 1300, "height": 720}, color_scheme="light")
        page.goto(f"{phoenix.url}/projects/{node['id']}/traces/{root['trace']['traceId']}")
        page.wait_for_timeout(20_000)
        page.screenshot(path=IMAGES / "phoenix-trace.png")
        page.goto(f"{phoenix.url}/projects/{node['id']}/spans")
        page.wait_for_timeout(15_000)
        page.screenshot(path=IMAGES / "phoenix-spans.png")
        chromium.close()
