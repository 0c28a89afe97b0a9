"""Files that llamatel appends to: their mode, torn lines, rotation by SIGHUP, full disks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamatel.llama.server.log_copy import LogCopy
from llamatel.outputs import appended_file
from llamatel.outputs.appended_file import AppendedFile, reopen_files
from llamatel.records import Completion, Outcome, ServerInfo
from llamatel.telemetry.jsonl import JsonLines
from tests.parts import wait_until
from tests.parts.logrotate import rotate

REQUEST = Completion(ServerInfo("127.0.0.1", 8090), 0, 1, 1.0, 2.0, Outcome.OK)
LOG = Path(__file__).parent / "golden" / "logs" / "2026.10.11549.log"
RULES = Path(__file__).parents[1] / "deploy" / "logrotate" / "llamatel"


def test_appended_file_mode(tmp_path: Path) -> None:
    JsonLines.open(str(tmp_path / "a.jsonl")).close()
    LogCopy(tmp_path / "server.log").close()
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "a.jsonl": 0o600,
        "server.log": 0o600,
    }


@pytest.mark.parametrize(
    "torn",
    [
        b'{"trace_id": null, "serv',
        b'{"tra',
        b"{",
        b'{"trace_id": "\xc3',
        b'{"trace_id": nu' + bytes(5000),
        bytes(3 << 20),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_jsonl_torn_line_is_removed(tmp_path: Path, torn: bytes, before: int, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    for _ in range(before):
        lines = JsonLines.open(str(path))
        lines(REQUEST)
        lines.close()
    with path.open("ab") as stream:
        stream.write(torn)
    lines = JsonLines.open(str(path))
    lines(REQUEST)
    lines.close()
    assert [json.loads(line)["task"] for line in path.read_text().splitlines()] == [1] * (before + 1)
    assert f"{path}: its last {len(torn)} bytes were cut by a crash and are removed" in caplog.text


def test_jsonl_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for _ in range(3):
        lines = JsonLines.open(str(path))
        lines(REQUEST)
        lines.close()
        path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [json.loads(line)["task"] for line in path.read_text().splitlines()] == [1, 1, 1]


def test_jsonl_line_of_another_program_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine, without a line end")
    lines = JsonLines.open(str(path))
    lines(REQUEST)
    lines.close()
    first, second = path.read_text().splitlines()
    assert first == "mine, without a line end"
    assert json.loads(second)["task"] == 1


def test_appended_file_reopens(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    file = AppendedFile(path)
    file.write(b"one\n")
    path.rename(tmp_path / "a.log.1")
    file.write(b"two\n")
    reopen_files()
    file.write(b"three\n")
    file.close()
    assert (tmp_path / "a.log.1").read_text() == "one\ntwo\n"
    assert path.read_text() == "three\n"


def test_appended_file_reopen_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file = AppendedFile(folder / "a.log")
    folder.rename(tmp_path / "moved")
    reopen_files()
    file.write(b"one\n")
    file.close()
    assert (tmp_path / "moved" / "a.log").read_text() == "one\n"
    assert "writing goes on in the file that was moved" in caplog.text


def limited(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process whose files are limited to 4 KiB until it raises the limit, like a full disk."""
    limit = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "room = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", limit + code, *arguments], capture_output=True, text=True, check=True, timeout=60
    )


def test_jsonl_continues_after_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    done = limited(
        "from tests.test_appended_file import REQUEST, JsonLines\n"
        "from llamatel.outputs import appended_file\n"
        "full()\n"
        "lines = JsonLines.open(sys.argv[1])\n"
        "for _ in range(50): lines(REQUEST)\n"
        "room()\n"
        "for _ in range(50): lines(REQUEST)\n"
        "print(lines.dropped, appended_file.lost()['jsonl_failed'])\n",
        str(path),
    )
    dropped, counted = map(int, done.stdout.split())
    assert dropped == counted > 30
    assert [json.loads(line)["task"] for line in path.read_text().splitlines()] == [1] * (100 - dropped)
    assert done.stderr.count("cannot write to") == 1
    assert done.stderr.count("is written to again") == 1


def test_server_log_continues_after_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    done = limited(
        "import time\n"
        "from llamatel.llama.server.log_copy import LogCopy\n"
        "full()\n"
        "copy = LogCopy(sys.argv[1])\n"
        "for number in range(100):\n"
        "    copy.put([f'{number} ' + 'x' * 98])\n"
        "while copy.dropped < 50: time.sleep(0.01)\n"
        "time.sleep(0.2)\n"
        "room()\n"
        "copy.put(['last'])\n"
        "copy.close()\n"
        "print(copy.dropped)\n",
        str(path),
    )
    lines = path.read_text().splitlines()
    assert lines[-2:] == [f"llamatel: {done.stdout.strip()} lines of the server's log are left out near here", "last"]
    assert len(lines) - 2 + int(done.stdout) == 100
    assert done.stderr.count("cannot write the server's log") == 1


def test_appended_file_lost_bytes_metric() -> None:
    before = appended_file.lost().get("jsonl_failed", 0)
    lines = JsonLines.open("/dev/full")
    lines(REQUEST)
    lines.close()
    assert appended_file.lost()["jsonl_failed"] == before + 1


@pytest.mark.usefixtures("no_settings")
def test_logrotate_reopens_files(tmp_path: Path) -> None:
    """Debian's logrotate with the shipped file, less systemctl: SIGHUP comes from it, as a daemon has no terminal."""
    log, path = tmp_path / "server.in", tmp_path / "a.jsonl"
    log.touch()

    def recorded() -> list[int]:
        lines = (tmp_path / "a.jsonl.1").read_text().splitlines() + path.read_text().splitlines()
        return [json.loads(line)["task"] for line in lines]

    child = subprocess.Popen(
        [sys.executable, "-m", "llamatel.cli.main", "attach", "--log", log, "--jsonl", path, "--metrics-addr", "none"],
        start_new_session=True, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert child.stderr is not None
        child.stderr.readline()
        time.sleep(0.5)
        text = LOG.read_text().splitlines(keepends=True)
        with log.open("a") as stream:
            stream.writelines(text[:100])
        wait_until(lambda: path.exists() and path.stat().st_size, 20, "a request")
        time.sleep(1.0)
        shipped = RULES.read_text().replace("/var/log/llamatel", str(tmp_path))
        rules = tmp_path / "rules"
        rules.write_text(shipped.replace("systemctl reload llamatel-serve.service", f"kill -HUP {child.pid}"))
        rules.chmod(0o644)
        rotate(rules, tmp_path / "logrotate.state")
        time.sleep(0.3)
        with log.open("a") as stream:
            stream.writelines(text[100:])
        wait_until(lambda: path.exists() and len(recorded()) == 37, 20, "all requests")
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.communicate()
    assert len(set(recorded())) == 37
    assert path.stat().st_size
