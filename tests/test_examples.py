"""The examples/ run on a tiny model, and so does a ported notebook with only the package's name changed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.notebooks import cells, run_notebook
from tests.parts import free_port

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.slow


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "OTEL_"))}
    return {**kept, "LLAMA_ARG_THREADS": "1", "OTEL_EXPORTER_PROMETHEUS_PORT": "0", **more}


def run(name: str, model: Path, folder: Path) -> list[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), str(model)]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout.splitlines()


def depths(lines: list[str]) -> list[tuple[int, str]]:
    """Return the depth and name of each span of a printed trace."""
    found = []
    for line in lines[1:]:
        parts = re.match(r"( *)(\S.*?)\s+[\d.]+ m?s ", line)
        if parts is not None:
            found.append((len(parts[1]) // 2, parts[2]))
    return found


def test_example_traced_script(tiny_model: Path, tmp_path: Path) -> None:
    lines = run("traced_script.py", tiny_model, tmp_path)
    assert re.fullmatch("trace [0-9a-f]{32}", lines[0])
    spans = depths(lines)
    assert spans[0] == (0, "invoke_workflow interview")
    assert [name for depth, name in spans if depth == 1] == ["ask", "ask"]
    names = [name for _, name in spans]
    assert [names.count(part) for part in ("chat", "prefill", "decode")] >= [2, 2, 2]
    assert "requests" in (tmp_path / "report.html").read_text()


def test_example_async_agents(tiny_model: Path, tmp_path: Path) -> None:
    spans = depths(run("async_agents.py", tiny_model, tmp_path))
    assert spans[0] == (0, "invoke_workflow newsroom")
    agents = [index for index, span in enumerate(spans) if span == (1, "agent")]
    assert len(agents) == 3
    for begin, end in zip(agents, [*agents[1:], len(spans)], strict=True):
        assert [name for depth, name in spans[begin + 1 : end] if depth == 2] == ["draft", "review"]


def test_example_kaggle_notebook_without_gpu(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"LLAMATEL_MODEL": str(tiny_model), "LLAMATEL_CTX": "1024", "LLAMATEL_REQUESTS": "4"}
    ran = run_notebook(EXAMPLES / "kaggle_t4x2.ipynb", tmp_path, environment(**settings), timeout_s=240)
    size = 1024 * 2 * 2 * 32 * 2
    assert f"{size:,} bytes of KV cache, exact" in ran.text
    assert "4 answers, 128 tokens" in ran.text
    assert "on the CPU" in ran.text
    shown = ran.shown("text/html")
    assert any("two at a time" in html for html in shown)
    assert '<div class="llamatel">' in shown[-1]
    assert "4</b> <span>requests" in (tmp_path / "report.html").read_text()
    assert ran.text.rstrip().endswith("True")


def test_example_notebook_has_no_outputs() -> None:
    text = (EXAMPLES / "kaggle_t4x2.ipynb").read_text()
    assert '"output_type"' not in text
    assert '"execution_count": null' in text


def test_ported_notebook(tiny_model: Path, tmp_path: Path) -> None:
    """The original notebook's code with the package's name changed and a free port."""
    port = free_port()
    ran = run_notebook(
        cells(
            "import llamatel\nfrom llamatel.llama import ServerManager, LlamaCppClient, parse_gguf_header",
            f"path = {str(tiny_model)!r}\nllamatel.init(service_name='notebook')",
            "mgr = ServerManager()\n"
            f"mgr.start_server(model_path=path, gpu_layers=99, ctx_size=2048, port={port})\n"
            "mgr.wait_until_ready(timeout=60)",
            f"client = LlamaCppClient(base_url='http://127.0.0.1:{port}')",
            "p = 'Hello there'\nprint('tokens', len(client.tokenize(p).tokens))",
            "resp = client.chat.completions.create(messages=[{'role': 'user', 'content': p}], max_tokens=8)\n"
            "print('prompt', resp.usage.prompt_tokens)",
            "info = parse_gguf_header(path, read_tensors=True)\nprint('embedding', info.metadata.embedding_length)\n"
            "for t in info.tensors[:2]:\n    print(t.name, t.shape)",
            "mgr.stop_server()\nllamatel.shutdown()\nprint('done')",
        ),
        tmp_path,
        environment(),
    )
    assert re.search(r"tokens 1[12]\n", ran.text)
    assert re.search(r"prompt [1-9]\d*\n", ran.text)
    assert "embedding 64\ntoken_embd.weight (64, 354)\n" in ran.text
    assert ran.text.rstrip().endswith("done")
