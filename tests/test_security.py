"""The threat model names tests that exist; paths that are no usable files; where JSON from outside is parsed."""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from llamatel.cli.main import main
from llamatel.cli.signals import Interrupted, ending_signals
from llamatel.llama.watch.targets import TargetFiles

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
REFUSED = "http://127.0.0.1:9"
LINES = {
    "llamatel/llama/log/jsonl_record.py", "llamatel/llama/log/key_value_line.py", "llamatel/llama/log/log_line.py",
    "llamatel/llama/log/read_position.py", "llamatel/llama/log/wrapper_fields.py", "llamatel/outputs/appended_file.py",
}  # fmt: skip
"""Lines of a log, which are at most 64 KiB, llamatel's own state, and the last line of its own --jsonl file (1 MiB)."""
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


KINDS = ("loop", "fifo", "missing", "no such user", "folder", "socket", "below a file", "too long")


def unusable(kind: str, folder: Path) -> str:
    """A path that is no readable file."""
    path = folder / kind
    if kind == "loop":
        path.symlink_to(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(kind)
    return {"no such user": "~no-such-user/x", "below a file": f"{__file__}/x", "too long": "x" * 5000}.get(
        kind, str(path)
    )


SERVE = ("serve", "tiny", "--port", "0", "--metrics-addr", "none")
ATTACH = ("attach", "--metrics-addr", "none")


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect",),
        ("plan",),
        ("explore",),
        ("serve", "--metrics-addr", "none"),
        (*SERVE, "--api-key-file"),
        (*SERVE, "--backend"),
        ("top", "--once", REFUSED, "--ca-file"),
        ("top", "--once", REFUSED, "--client-cert"),
        ("doctor", REFUSED, "--header-file"),
        (*ATTACH, "--targets"),
        (*ATTACH, REFUSED, "--page-token-file"),
        (*ATTACH, REFUSED, "--otlp-endpoint", REFUSED, "--otlp-spool"),
        ("dashboards", "push", REFUSED, "--token-file"),
    ],
    ids=lambda words: "_".join((words[0], words[-1])),
)
def test_cli_unusable_path_is_one_line(
    arguments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A symlink loop, a FIFO without a writer, a folder, another user's home, ...: one line, at once."""
    for kind in KINDS:
        folder = tmp_path / kind.replace(" ", "_")
        folder.mkdir()
        monkeypatch.chdir(folder)
        if arguments[-1] == "--otlp-spool" and kind in ("missing", "folder", "no such user"):
            continue  # it is made
        code = main([*arguments, unusable(kind, folder)])
        stderr = capsys.readouterr().err
        assert code in (1, 2), kind
        assert stderr.count("llamatel: error: ") == 1, kind
        assert "defect" not in stderr


def test_attach_targets_fifo_is_read_once(tmp_path: Path) -> None:
    """Process substitution works; what is read a second time would be empty."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with fifo.open("w") as stream:
        stream.write("http://127.0.0.1:9\n")
        stream.flush()
        threading.Timer(0.2, stream.close).start()
        files = TargetFiles([str(fifo)])
    os.close(reader)
    assert [each.url for each in files.targets()] == ["http://127.0.0.1:9"]
    assert not files.changed()
    assert len(files.targets()) == 1


def test_log_state_replaces_no_special_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A FIFO, a device: run as root, it would be replaced by a file."""
    (tmp_path / "log").touch()
    os.mkfifo(tmp_path / "state")
    code = main([*ATTACH, "--log", str(tmp_path / "log"), "--log-state", str(tmp_path / "state")])
    assert (code, capsys.readouterr().err.count("cannot write")) == (2, 1)
    assert (tmp_path / "state").is_fifo()


class _Slow:
    """Its destructor is interrupted."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_signal_in_a_destructor_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    """Python prints and drops an exception there."""
    with pytest.raises(Interrupted), ending_signals():  # noqa: PT012
        _Slow()
        time.sleep(30)
    assert capfd.readouterr().err == ""


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
