"""How many calls of each client library are joined with llama.cpp's requests; writes the table of docs/tracing.md.

    python -m tests.client_matrix [CALLS]

Real llama.cpp, eight callers at once with identical prompts, in the server's process and in another one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.matrix_caller import FLAGS, THREADS
from tests.parts import Child, OtlpSink, wait_until
from tests.parts.environments import client_libraries, openai_v2
from tests.parts.otlp import SinkSpan

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tracing.md"
TABLE = re.compile(r"(?<=<!-- client matrix -->\n).*?(?=<!-- end -->)", re.DOTALL)

_OPENAI = ("", "genai-openai", "openai-v2", "openinference-openai")
ROWS: tuple[tuple[str, str], ...] = tuple(
    (client, instrumentation)
    for client, instrumentations in {
        "openai": _OPENAI,
        "openai, streaming": _OPENAI,
        "openai, async": _OPENAI,
        "openai, completions": ("", "openinference-openai"),
        "openai, responses": ("", "genai-openai", "openinference-openai"),
        "openai, responses, streaming": ("",),
        "langchain-openai": ("", "langchain", "openinference-langchain", "openinference-openai", "genai-openai"),
        "litellm": ("", "openinference-litellm", "openinference-openai"),
        "pydantic-ai": ("", "pydantic-ai"),
        "instructor": ("", "openinference-openai"),
        "llm": ("",),
        "requests": ("", "requests"),
        "httpx": ("", "httpx"),
        "LlamaCppClient": ("", "urllib3"),
    }.items()
    for instrumentation in instrumentations
)
"""Client, and the other instrumentation that is switched on (of models, or of HTTP)."""
SHORT = ROWS[:4]


@dataclass(frozen=True)
class Count:
    """How a number of calls were joined."""

    joined: int
    linked: int
    none: int
    wrong: int
    """Of those joined, with a request of another caller."""
    client_spans: int
    """CLIENT spans, or those of another instrumentation, in the traces of the calls."""

    @property
    def calls(self) -> int:
        return self.joined + self.linked + self.none


def environment(sink: OtlpSink, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA", "OTEL_"))}
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "collectors", "dashboards"))
    return {
        **kept, "PYTHONPATH": paths, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_BSP_SCHEDULE_DELAY": "100", **more,
    }  # fmt: skip


class OtherProcess:
    """A ``llamatel serve`` whose server is shared by the callers."""

    def __init__(self, sink: OtlpSink, model: Path, folder: Path, **env: str) -> None:
        command = [
            sys.executable, "-m", "llamatel.cli.main", "serve", str(model), "--port", "0", "--alias", "tiny",
            "--metrics-addr", "127.0.0.1:0", "--backend", "xllamacpp", "--", *FLAGS,
        ]  # fmt: skip
        more = {name: value for name, value in environment(sink, **env).items() if name not in os.environ}
        self.child = Child(command, folder / "serve.log", more)
        self.child.wait_ready(lambda: "OTLP" in self.child.output() and "metrics" in self.child.output(), 60)
        self.url, metrics = (self._shown(name) for name in ("server", "metrics"))
        self.page_url = metrics.removesuffix("/metrics")

    def _shown(self, name: str) -> str:
        found = re.search(rf"{name} +(http://\S+)", self.child.output())
        assert found is not None, self.child.output()
        return found.group(1)


def measure(
    sink: OtlpSink, client: str, other: str, calls: int, *, model: Path, elsewhere: OtherProcess | None, python: Path
) -> Count:
    """Run one caller and evaluate the received spans."""
    sink.clear()
    target = str(model) if elsewhere is None else elsewhere.url
    env = environment(sink, LLAMATEL_URL="none" if elsewhere is None else elsewhere.page_url)
    if other == "openai-v2":
        env["PYTHONPATH"] = os.pathsep.join((str(openai_v2()), env["PYTHONPATH"]))
    done = subprocess.run(
        [str(python), "-m", "tests.matrix_caller", client, other, target, str(calls)],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result == {"failed": []}, result
    wait_until(lambda: len(of_kind(sink.spans(), "SERVER")) >= calls + 1, 60, "the spans of the server")
    return count(sink.spans())


def of_kind(spans: list[SinkSpan], kind: str) -> list[SinkSpan]:
    return [span for span in spans if span.kind == kind]


def count(spans: list[SinkSpan]) -> Count:
    """Classify the calls by the server's spans."""
    roots = {span.trace_id: span for span in spans if span.name == "call"}
    outcomes: dict[str, str] = dict.fromkeys(roots, "none")
    wrong = 0
    for request in of_kind(spans, "SERVER"):
        if request.trace_id in roots:
            outcomes[request.trace_id] = "joined"
            slot = roots[request.trace_id].attributes["llamatel.argument.slot"]
            wrong += request.attributes["llamacpp.slot.id"] != slot
        for trace_id in linked(request):
            if outcomes.get(trace_id) == "none":
                outcomes[trace_id] = "linked"
    calls = [span for span in spans if span.trace_id in roots and is_call(span)]
    counts = Counter(outcomes.values())
    return Count(counts["joined"], counts["linked"], counts["none"], wrong, len(calls))


def linked(span: SinkSpan) -> Iterator[str]:
    for trace_id, _ in span.links:
        yield trace_id


def is_call(span: SinkSpan) -> bool:
    """Whether the span represents one call to a model."""
    operation = span.attributes.get("gen_ai.operation.name")
    kind = span.attributes.get("openinference.span.kind")
    return span.kind != "SERVER" and (operation in ("chat", "text_completion") or kind == "LLM")


def instrumentations(other: str) -> str:
    """As the table has them."""
    return f"llamatel, {other}" if other else "llamatel"


def table(rows: list[tuple[str, str, str, Count]]) -> str:
    """Return the table of docs/tracing.md."""
    lines = [
        "| client | instrumentations | server's process | joined | linked | none | wrong |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {client} | {instrumentations(other)} | {process} | {found.joined} | {found.linked} | {found.none} | "
        f"{found.wrong} |"
        for client, other, process, found in rows
    ]
    return "\n".join(lines) + "\n"


def main(calls: int = 400) -> None:
    """Measure all rows and write the table."""
    from tests.tiny_gguf import write_tiny_model

    rows: list[tuple[str, str, str, Count]] = []
    python = client_libraries()
    with tempfile.TemporaryDirectory() as folder, OtlpSink() as sink:
        model = write_tiny_model(Path(folder) / "tiny.gguf")
        serving = OtherProcess(sink, model, Path(folder))
        try:
            for client, other in ROWS:
                for process, elsewhere in (("same", None), ("other", serving)):
                    found = measure(sink, client, other, calls, model=model, elsewhere=elsewhere, python=python)
                    rows.append((client, other, process, found))
                    print(client, other, process, found, flush=True)
        finally:
            serving.child.stop()
    text = PAGE.read_text(encoding="utf-8")
    assert TABLE.search(text), "docs/tracing.md has no place for the table"
    PAGE.write_text(TABLE.sub(lambda _: table(rows), text), encoding="utf-8")


if __name__ == "__main__":
    main(*(int(word) // THREADS * THREADS for word in sys.argv[1:]))
