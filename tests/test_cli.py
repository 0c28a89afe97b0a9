"""The command line without a server: help, flags, errors, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from llamatel.cli import main as cli_main
from llamatel.cli.main import COMMANDS, cli, main
from llamatel.cli.options import set_verbosity

LLAMATEL = [sys.executable, "-m", "llamatel.cli.main"]


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    yield
    set_verbosity(0)


def llamatel(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LLAMATEL, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(env or {})},
        check=False,
    )


def test_cli_help_lists_commands_without_imports() -> None:
    script = (
        "import sys; from llamatel.cli.main import main; code = main(['--help'])\n"
        "heavy = {'rich', 'opentelemetry', 'numpy', 'gguf', 'urllib3', 'prometheus_client'} & set(sys.modules)\n"
        "heavy |= {'llamatel.cli.serve', 'llamatel.cli.demo', 'llamatel.cli.attach'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for verb, (_, text) in COMMANDS.items():
        assert f"  {verb}" in done.stdout
        assert text in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_cli_ctrl_c_during_imports() -> None:
    program = (
        "import signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from llamatel.cli.start import run\n"
        "run()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("verb", COMMANDS)
def test_cli_command_help_fits_on_one_screen(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    assert command.name == verb
    assert main([verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 45


def test_cli_version() -> None:
    done = llamatel("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("llamatel ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["--frobnicate"], "No such option"),
        (["serve"], "Missing argument 'MODEL'"),
        (["serve", "m.gguf", "--port", "70000"], "70000 is not in the range"),
        (["serve", "m.gguf", "-np", "many"], "'many' is not a valid integer"),
        (["serve", "m.gguf", "--cache-ram", "0"], "put it after --: llamatel serve MODEL -- --cache-ram"),
        (["serve", "m.gguf", "junk"], "unexpected extra argument"),
        (["serve", "m.gguf", "--restart", "always"], "'always' is not one of"),
        (["serve", "m.gguf", "--metrics-addr", "nowhere"], "'nowhere' is not an address"),
        (["serve", "m.gguf", "--otlp-endpoint", "http://"], "is not an OTLP endpoint"),
        (["serve", "m.gguf", "--collector", "frobnicate"], "there is no collector 'frobnicate'"),
        (["serve", "m.gguf", "--requests", "--jsonl", "-"], "both write to standard output"),
        (["demo", "--jsonl", "-"], "give --jsonl a file"),
        (["attach"], "name servers"),
    ],
)
def test_cli_usage_error_exit_code(arguments: list[str], message: str) -> None:
    done = llamatel(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("llamatel: error: ")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


@pytest.mark.parametrize("arguments", [(), ("dashboards",)], ids=" ".join)
def test_cli_no_arguments_shows_help(arguments: tuple[str, ...]) -> None:
    done = llamatel(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == llamatel(*arguments, "--help").stdout


def test_cli_folder_as_model(tmp_path: Path) -> None:
    done = llamatel("serve", str(tmp_path), "--metrics-addr", "none")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"llamatel: error: {tmp_path} is a folder: name the model's file in it"


def test_cli_missing_model() -> None:
    done = llamatel("serve", "/nowhere/model.gguf", "--metrics-addr", "none")
    assert done.returncode in (1, 2)
    assert "/nowhere/model.gguf" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("llamatel: error: ")
    assert "Traceback" not in done.stderr


def test_cli_serve_flags_match_llama_server() -> None:
    serve = cli.get_command(click.Context(cli), "serve")
    assert serve is not None
    line = (
        "m.gguf -c 4096 -np 2 -ngl all -ctk q8_0 -ctv q4_0 -b 512 -ub 256 -fa on -no-kvu --swa-full -ts 3,1 -sm row "
        "-mg 1 -a name --port 0 -- -np 7 --lookup -- x"
    )
    ctx = serve.make_context("serve", line.split())
    assert ctx.meta["llamatel.server_args"] == ["-np", "7", "--lookup", "--", "x"]
    values = {name: value for name, value in ctx.params.items() if value not in (None, ())}
    assert values == {
        "model": "m.gguf", "ctx_size": 4096, "n_parallel": 2, "gpu_layers": "all", "cache_type_k": "q8_0",
        "cache_type_v": "q4_0", "batch_size": 512, "ubatch_size": 256, "flash_attn": "on", "kv_unified": False,
        "swa_full": True, "tensor_split": "3,1", "split_mode": "row", "main_gpu": 1, "alias": "name", "port": 0,
        "host": "127.0.0.1", "restart": "never", "stalled_after": 60.0, "max_restarts": 5, "ready_timeout": 600.0,
    }  # fmt: skip
    again = "m.gguf --ctx-size=1 --parallel=1 --gpu-layers 0 --kv-unified -c8"
    long = serve.make_context("serve", again.split())
    assert (long.params["kv_unified"], long.params["ctx_size"], long.params["gpu_layers"]) == (True, 8, "0")


def test_cli_traceback_only_with_verbose(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(cli_main.cli, "main", broken)
    assert main(["serve"]) == 1
    quiet = capsys.readouterr().err
    assert quiet == "llamatel: error: this is a defect of llamatel: ZeroDivisionError: oops (-v shows where)\n"


@pytest.mark.parametrize("arguments", ["--help", "serve --help"])
def test_cli_closed_pipe(arguments: str, tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    command = (
        f"{sys.executable} -m llamatel.cli.main {arguments} 2>{errors} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "0"
    assert errors.read_text() == ""


def in_shell(command: str) -> tuple[int, str]:
    """Return the exit code and stderr of this tree's ``llamatel``."""
    line = command.replace("llamatel", f"{sys.executable} -m llamatel.cli.main")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("arguments", ["--help", "--version", "dashboards --help"])
def test_cli_stdout_on_full_disk(arguments: str) -> None:
    full = "llamatel: error: cannot write the output: No space left on device\n"
    assert in_shell(f"llamatel {arguments} >/dev/full") == (1, full)


@pytest.mark.parametrize("closed", ["<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_cli_closed_standard_streams(closed: str, tmp_path: Path) -> None:
    assert in_shell(f"llamatel --version {closed}") == (0, "")
    # Files opened later do not reuse their descriptors.
    export = tmp_path / "exported"
    assert in_shell(f"llamatel dashboards export {export} {closed}") == (0, "")
    assert all(path.stat().st_size for path in export.rglob("*.json"))
    assert in_shell(f"llamatel frobnicate {closed}")[0] == 2


def test_cli_ascii_output() -> None:
    done = llamatel("serve", "/nowhere/mod\u00e8le.gguf", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode in (1, 2)
    assert "mod?le.gguf" in done.stderr
