"""The threat model names tests that exist; paths that are no usable files; where JSON from outside is parsed."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

from llamatel.cli.main import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
REFUSED = "http://127.0.0.1:9"
LINES = {
    "llamatel/llama/log/jsonl_record.py", "llamatel/llama/log/key_value_line.py", "llamatel/llama/log/log_line.py",
    "llamatel/llama/log/read_position.py", "llamatel/llama/log/wrapper_fields.py",
}  # fmt: skip
"""Lines of a log, which are at most 64 KiB, and llamatel's own state."""
OWN = {
    "llamatel/cli/load_clients.py", "llamatel/explore/capture.py", "llamatel/explore/explore_child.py",
    "llamatel/inputs/documents.py", "llamatel/plan/config_values.py", "llamatel/tracing/http_call.py",
    "llamatel/tracing/openinference.py",
}  # fmt: skip
"""The loader, files of the package, messages of llamatel's own processes, requests of the application itself."""


def test_security_page_names_existing_tests() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert named - set(re.findall(r"^def (test_\w+)\(", source, re.MULTILINE)) == set()
    assert len(named) > 30


def test_security_page_rows_name_a_test() -> None:
    model = (
        PAGE.partition("### What remains forgeable")[0] + PAGE.partition("## A local user")[2].partition("## Tried")[0]
    )
    rows = [line for line in model.splitlines() if line.startswith("| ") and not line.startswith("| can ")]
    assert len(rows) > 12
    assert [line for line in rows if "`test_" not in line] == []


def test_json_from_outside_is_parsed_within_bounds() -> None:
    found = set()
    for path in (*ROOT.glob("llamatel/**/*.py"), *ROOT.glob("collectors/llamatel_collectors/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"loads", "load", "raw_decode"}:
                value = node.value
                if isinstance(value, ast.Name) and value.id in {"json", "_DECODER", "yaml", "pickle", "marshal"}:
                    found.add(str(path.relative_to(ROOT)))
    assert found - LINES - OWN == set()


@pytest.fixture(params=["loop", "fifo", "missing", "no such user"])
def unusable(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / request.param
    if request.param == "loop":
        path.symlink_to(path)
    elif request.param == "fifo":
        os.mkfifo(path)
    return "~no-such-user/x" if request.param == "no such user" else str(path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect",),
        ("plan",),
        ("dashboards", "export"),
        ("serve", "tiny", "--metrics-addr", "none", "--api-key-file"),
        ("top", "--once", REFUSED, "--ca-file"),
        ("top", "--once", REFUSED, "--client-cert"),
        ("doctor", REFUSED, "--header-file"),
        ("attach", "--metrics-addr", "127.0.0.1:0", REFUSED, "--page-token-file"),
        ("dashboards", "push", REFUSED, "--token-file"),
    ],
    ids=lambda words: "_".join((words[0], words[-1])),
)
def test_cli_unusable_path_is_one_line(
    arguments: tuple[str, ...],
    unusable: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A symlink loop, a FIFO without a writer, a missing file, another user's home: one line, at once."""
    monkeypatch.chdir(tmp_path)
    code = main([*arguments, unusable])
    stderr = capsys.readouterr().err
    if arguments[:2] == ("dashboards", "export") and code == 0:
        return  # a new folder
    assert code in (1, 2)
    assert stderr.count("llamatel: error: ") == 1
    assert "defect" not in stderr


@pytest.mark.parametrize("columns", ["0", "-5", "x", "99999999999"])
def test_cli_columns_without_sense(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["inspect", "tiny"]) == 0
    assert "KV cache" in capsys.readouterr().out


@pytest.mark.parametrize(
    "endpoint", ["http://h:1/v1?key=sk-1", "http://u:sk-1?@h:1", "http://u:sk-1@h:x", "h?key=sk-1"]
)
def test_otlp_endpoint_secrets_are_not_shown(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    from llamatel.errors import UsageError
    from llamatel.telemetry.settings import Settings

    shown = ""
    try:
        settings = Settings.from_env({}, otlp_endpoint=endpoint, metrics_addr="none")
        shown = "".join(f"{each.url} {each.shown}" for each in (settings.traces_otlp, settings.metrics_otlp) if each)
    except UsageError as error:
        shown = str(error)
    assert shown
    assert "sk-1" not in shown
