"""``llamatel serve`` and ``llamatel attach`` as processes, with real llama.cpp."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attached import unmanaged
from tests.parts import OtlpSink
from tests.parts.processes import free_port, wait_until
from tests.parts.terminal import Terminal, plain

LLAMATEL = [sys.executable, "-m", "llamatel.cli.main"]
REQUEST = re.compile(r"^\d\d:\d\d:\d\d (\w+) ", re.MULTILINE)
LOGS = Path(__file__).parent / "golden" / "logs"


def environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LLAMA"))}
    return {**own, "OTEL_EXPORTER_PROMETHEUS_PORT": "0", "LLAMATEL_TEST_SESSION": os.environ["LLAMATEL_TEST_SESSION"]}


class Running:
    """A running llamatel command, with its output in files."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.out, self.err = folder / "out", folder / "err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*LLAMATEL, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment() | variables
            )

    def wait_for(self, pattern: str) -> str:
        """Return the first group of ``pattern`` in stderr as soon as it matches."""

        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.err.read_text())
            assert match or self.process.poll() is None, self.err.read_text()
            return match

        match = wait_until(found, 60, pattern)
        assert match is not None
        return match.group(1)

    def end(self, signum: signal.Signals) -> int:
        self.process.send_signal(signum)
        return self.process.wait(20)


def complete(url: str, prompt: str = "Hello", tokens: int = 8) -> int:
    body = json.dumps({"prompt": prompt, "max_tokens": tokens}).encode()
    try:
        with urllib.request.urlopen(f"{url}/v1/completions", body, timeout=60) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def started() -> Iterator[list[Running]]:
    running: list[Running] = []
    yield running
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_serve_requests_and_exit_code_0(
    signum: signal.Signals, tiny_model: Path, tmp_path: Path, started: list[Running]
) -> None:
    rows = tmp_path / "requests.jsonl"
    serve = Running(
        tmp_path, "serve", str(tiny_model), "--port", "0", "-np", "2", "-c", "512", "--requests", "-a", "mine", "-v",
        "--jsonl", str(rows), "--", "--no-slots",
    )  # fmt: skip
    started.append(serve)
    url = serve.wait_for(r"server +(http://\S+)  mine\n")
    metrics = serve.wait_for(r"metrics +(http://\S+)")
    with urllib.request.urlopen(serve.wait_for(r"page +(http://\S+)"), timeout=30) as response:
        assert "<title>llamatel</title>" in response.read().decode()
    assert [complete(url), complete(url, "x" * 4000)] == [200, 400]
    serve.wait_for(r"because +(the wheel is installed|it was requested|.* names it|it is on PATH)")
    with urllib.request.urlopen(metrics, timeout=30) as response:
        assert 'gen_ai_request_model="mine"' in response.read().decode()
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{url}/slots", timeout=30)  # --no-slots reached llama-server
    wait_until(lambda: len(REQUEST.findall(serve.out.read_text())) == 2, 20, "two request lines")
    assert serve.end(signum) == 0
    assert REQUEST.findall(serve.out.read_text()) == ["ok", "error"]
    assert [json.loads(line)["outcome"] for line in rows.read_text().splitlines()] == ["ok", "error"]
    assert serve.err.read_text().splitlines()[-1] == "llamatel: 2 requests: 1 ok, 1 error"
    assert "Traceback" not in serve.err.read_text()


def test_serve_reports_killed_server(tiny_model: Path, tmp_path: Path, started: list[Running]) -> None:
    rows = tmp_path / "requests.jsonl"
    serve = Running(tmp_path, "serve", str(tiny_model), "--port", "0", "--metrics-addr", "none", "--jsonl", str(rows))
    started.append(serve)
    url = serve.wait_for(r"server +(http://\S+)")
    assert complete(url) == 200
    row = wait_until(rows.read_text, 20, "the request's line")
    os.kill(json.loads(row)["server"]["pid"], signal.SIGKILL)
    assert serve.process.wait(20) == 1
    last = serve.err.read_text().splitlines()[-1]
    assert last.startswith("llamatel: error: ")
    assert "signal 9" in last or "killed" in last
    assert "Traceback" not in serve.err.read_text()


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (b"GGUF" + bytes(100), [], "gguf|magic|version|load|tensor"),
        (None, ["--", "--frobnicate"], "invalid argument"),
    ],
)
def test_serve_failed_start_is_one_line(
    content: bytes | None, flags: list[str], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    model = tiny_model
    if content is not None:
        model = tmp_path / "broken.gguf"
        model.write_bytes(content)
    done = subprocess.run(
        [*LLAMATEL, "serve", str(model), "--port", "0", "--metrics-addr", "none", *flags],
        capture_output=True, text=True, timeout=60, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("llamatel: error: ")
    assert re.search(message, last, re.IGNORECASE)
    assert "Traceback" not in done.stderr


def test_serve_port_in_use(tiny_model: Path, tmp_path: Path, started: list[Running]) -> None:
    port = str(free_port())
    first = Running(tmp_path, "serve", str(tiny_model), "--port", port)
    started.append(first)
    first.wait_for(r"server +(http://\S+)")
    done = subprocess.run(
        [*LLAMATEL, "serve", str(tiny_model), "--port", port, "--metrics-addr", "none"],
        capture_output=True, text=True, timeout=60, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert port in done.stderr.splitlines()[-1]
    assert first.end(signal.SIGTERM) == 0


def test_serve_continues_after_stdout_closed(tiny_model: Path, tmp_path: Path, started: list[Running]) -> None:
    reading, writing = os.pipe()
    serve = Running.__new__(Running)
    serve.err = tmp_path / "err"
    with serve.err.open("wb") as err:
        serve.process = subprocess.Popen(
            [*LLAMATEL, "serve", str(tiny_model), "--port", "0", "--requests"],
            stdin=subprocess.DEVNULL, stdout=writing, stderr=err, env=environment(),
        )  # fmt: skip
    os.close(writing)
    started.append(serve)
    url = serve.wait_for(r"server +(http://\S+)")
    os.close(reading)
    assert [complete(url), complete(url), complete(url)] == [200, 200, 200]
    assert serve.end(signal.SIGTERM) == 0
    assert serve.err.read_text().splitlines()[-1] == "llamatel: 3 requests: 3 ok"


def test_serve_terminal(tiny_model: Path) -> None:
    with Terminal([*LLAMATEL, "serve", str(tiny_model), "--port", "0"], environment()) as terminal:
        terminal.wait_for("OTLP")
        found = re.search(r"server +(http://\S+)", plain(terminal.text))
        assert found is not None
        assert complete(found.group(1)) == 200
        wait_until(lambda: terminal.read() and REQUEST.findall(plain(terminal.text)), 20, "the request's line")
        terminal.press("\x03")
        assert terminal.wait() == 0
    assert "1 request: 1 ok" in plain(terminal.text)
    assert max(map(len, plain(terminal.text).splitlines())) <= 80


def test_serve_terminal_hangup(tiny_model: Path) -> None:
    with Terminal([*LLAMATEL, "serve", str(tiny_model), "--port", "0"], environment()) as terminal:
        terminal.wait_for("OTLP")
        terminal.hang_up()
        assert terminal.process.wait(20) in (
            1,
            129,
        )  # conftest.py checks at the end of the session that no server is left


def attach(*arguments: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*LLAMATEL, "attach", *arguments], input=stdin, capture_output=True, timeout=60, env=environment(), check=False
    )


def test_attach_log_from_pipe() -> None:
    done = attach("--log", "-", "--requests", stdin=(LOGS / "queued.log").read_bytes())
    assert done.returncode == 0, done.stderr
    outcomes = REQUEST.findall(done.stdout.decode())
    assert outcomes
    assert done.stderr.decode().splitlines()[-1].startswith(f"llamatel: {len(outcomes)} requests: ")


def test_attach_jsonl_to_stdout() -> None:
    done = attach("--log", "-", "--jsonl", "-", "--metrics-addr", "none", stdin=(LOGS / "queued.log").read_bytes())
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    assert {row["outcome"] for row in rows} <= {"ok", "cancelled", "error", "context_full"}


def test_attach_exits_after_stdout_closed(tmp_path: Path) -> None:
    log = (LOGS / "queued.log").read_bytes()
    reading, writing = os.pipe()
    out_reading, out_writing = os.pipe()
    with (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            [*LLAMATEL, "attach", "--log", "-", "--requests"],
            stdin=reading, stdout=out_writing, stderr=err, env=environment(),
        )  # fmt: skip
    os.close(reading)
    os.close(out_writing)
    os.close(out_reading)
    os.write(writing, log[:60000])
    try:
        assert process.wait(20) == 0
    finally:
        os.close(writing)
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "Traceback" not in (tmp_path / "err").read_text()


def test_attach_log_file_and_counters(tiny_model: Path, tmp_path: Path, started: list[Running]) -> None:
    log = tmp_path / "server.log"
    served, attached = tmp_path / "served", tmp_path / "attached"
    served.mkdir()
    attached.mkdir()
    serve = Running(
        served,
        "serve",
        str(tiny_model),
        "--port",
        "0",
        "--metrics-addr",
        "none",
        "--server-log",
        str(log),
        "--",
        "--metrics",
    )
    started.append(serve)
    url = serve.wait_for(r"server +(http://\S+)")
    follow = Running(attached, "attach", url, "--log", str(log), "--requests")
    started.append(follow)
    metrics = follow.wait_for(r"metrics +(http://\S+)")
    follow.wait_for(r"(OTLP)")
    assert complete(url) == 200
    wait_until(lambda: REQUEST.findall(follow.out.read_text()) == ["ok"], 20, "the request's line")

    def counted() -> bool:
        with urllib.request.urlopen(metrics, timeout=30) as response:
            text = response.read().decode()
        return re.search(r'^llamacpp_tokens_total\{.*type="output".*\} 8\.0$', text, re.MULTILINE) is not None

    wait_until(counted, 20, "llama.cpp's own count of its tokens", every=0.3)
    assert follow.end(signal.SIGINT) == 0
    assert follow.err.read_text().splitlines()[-1] == "llamatel: 1 request: 1 ok"
    assert serve.end(signal.SIGTERM) == 0


def test_attach_several_servers_and_observed_spans(
    llama_server_binary: Path, tiny_model: Path, tmp_path: Path, started: list[Running], otlp_sink: OtlpSink
) -> None:
    model = ("-m", tiny_model, "--metrics")
    with (
        unmanaged(llama_server_binary, tmp_path, *model) as first,
        unmanaged(llama_server_binary, tmp_path, *model) as second,
    ):
        attach = Running(
            tmp_path, "attach", first.url, second.url, "--interval", "0.05", "--otlp-endpoint", otlp_sink.endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        )  # fmt: skip
        started.append(attach)
        metrics = attach.wait_for(r"metrics +(http://\S+)")
        attach.wait_for(r"(polling 2 servers)")

        def ports(metric: str) -> set[int]:
            with urllib.request.urlopen(metrics, timeout=30) as response:
                text = response.read().decode()
            return {
                int(port) for port in re.findall(rf'^{metric}{{.*server_port="(\d+)".*}} 1\.0$', text, re.MULTILINE)
            }

        wait_until(lambda: ports("llamacpp_server_up") == {first.port, second.port}, 20, "both are up", every=0.3)
        second.complete(1500)
        first.child.kill()
        wait_until(lambda: ports("llamacpp_server_up") == {second.port}, 20, "one is down", every=0.3)
        assert attach.end(signal.SIGTERM) == 0
    [span] = [span for span in otlp_sink.spans() if span.attributes.get("llamacpp.slot.id") is not None]
    assert (span.name, span.attributes["llamacpp.observed"]) == ("observed tiny.gguf", "polling")
    assert span.attributes["server.port"] == second.port


def test_attach_wrong_key_or_invalid_arguments(llama_server_binary: Path, tiny_model: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("not-the-key-of-this-server\n")
    with unmanaged(llama_server_binary, tmp_path, "-m", tiny_model, "--metrics", key="sk-another") as server:
        refused = attach(server.url, "--api-key-file", str(key), stdin=b"")
        assert refused.returncode == 1
        assert refused.stderr.decode() == (
            f"llamatel: error: {server.url} answered 401: the API key is missing or wrong: use --api-key-file\n"
        )
    for arguments, line in (
        (("a:1", "b:1", "--log", "-"), "a log belongs to one server"),
        (("ftp://a",), "not a server address"),
        (("--targets", str(tmp_path / "none")), "cannot read the targets"),
        (("a:1", "--header-file", str(key)), "is not a header"),
        (("https://a:1", "--ca-file", str(key)), "cannot use the CA file"),
    ):
        done = attach(*arguments, stdin=b"")
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
        assert line in done.stderr.decode()
        assert b"not-the-key" not in done.stderr


def test_attach_continues_after_log_end(
    llama_server_binary: Path, tiny_model: Path, tmp_path: Path, started: list[Running]
) -> None:
    """Polling continues, or the exit status is 1 with a message: never a silent 0."""
    with unmanaged(llama_server_binary, tmp_path, "-m", tiny_model, "--metrics") as server:
        attach = Running(
            tmp_path, "attach", server.url, "--log", "-", "--interval", "0.1", "--label", "env=prod"
        )  # its standard input is /dev/null
        started.append(attach)
        metrics = attach.wait_for(r"metrics +(http://\S+)")
        stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"
        attach.wait_for(rf"(?m)^({stamp}) llamatel: WARNING: the log has ended; polling continues")
        server.complete(5)

        def counted() -> bool:
            with urllib.request.urlopen(metrics, timeout=30) as response:
                text = response.read().decode()
            pattern = r'^llamacpp_tokens_total\{env="prod",[^}]*type="output"\} 5(\.0)?$'
            return re.search(pattern, text, re.MULTILINE) is not None

        wait_until(counted, 20, "its tokens")
        assert attach.end(signal.SIGTERM) == 0
        done = subprocess.run(
            [*LLAMATEL, "attach", server.url, "--log", "-", "--exit-with-log"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=environment(), check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "llamatel: error: the log has ended"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "x"], "'x' is not a label: write it NAME=VALUE"),
        (["--exit-with-log"], "--exit-with-log needs a log"),
        (["--log", "x", "--no-log"], "--log and --no-log: give one of them"),
        (["--client-key", "k"], "add --client-cert FILE"),
        (["--client-cert", "/nothing"], "cannot use the client certificate /nothing: No such file"),
    ],
)
def test_attach_options_invalid(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [*LLAMATEL, "attach", "http://127.0.0.1:1", *arguments],
        capture_output=True, text=True, timeout=60, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
