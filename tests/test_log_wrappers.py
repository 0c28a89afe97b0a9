"""llama.cpp's lines as other programs wrap them: every wrapper, around recorded logs of real builds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamatel.llama.log.log_source import Backlog, Batch
from llamatel.llama.log.log_wrapper import unwrap
from llamatel.llama.log.wrapped_lines import WrappedLines
from llamatel.llama.log.wrapper_time import find_time, parse_time
from llamatel.records import Completion, Outcome
from tests.golden.reading import ZERO, log_lines, read_attached, read_streams, reading, timed

Wrap = Callable[[str, float], str]


def rfc3339(now: float) -> str:
    return datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f") + "123Z"


def date(now: float, form: str) -> str:
    return datetime.fromtimestamp(now, timezone.utc).strftime(form)


def local(now: float, form: str) -> str:
    return datetime.fromtimestamp(now).strftime(form)  # noqa: DTZ006 - as those programs do


def micros(now: float) -> str:
    return f"{round(now * 1e6)}"


def journal(line: str, now: float, **more: object) -> dict[str, object]:
    return {
        "__CURSOR": "s=0;i=1",
        "__REALTIME_TIMESTAMP": micros(now),
        "_HOSTNAME": "gpu-1",
        "_PID": "4711",
        "_SYSTEMD_UNIT": "llama.service",
        "MESSAGE": line,
        **more,
    }


def syslog_escaped(line: str) -> str:
    return re.sub(r"[\x00-\x1f]", lambda found: f"#{ord(found.group()):03o}", line)


def fields(line: str, now: float, name: str) -> str:
    return "".join(f"{name}{key}={value}\n" for key, value in journal(line, now).items())


KUBERNETES = {"pod_name": "llama-0", "namespace_name": "ai", "container_name": "server", "docker_id": "4be8"}

WRAPPERS: dict[str, Wrap] = {
    "docker json-file": lambda line, now: json.dumps({"log": f"{line}\n", "stream": "stderr", "time": rfc3339(now)}),
    "docker json-file, attrs": lambda line, now: json.dumps(
        {"log": f"{line}\n", "stream": "stderr", "attrs": {"tag": "llama"}, "time": rfc3339(now)}
    ),
    "docker logs -t": lambda line, now: f"{rfc3339(now)} {line}",
    "containerd": lambda line, now: f"{rfc3339(now)} stderr F {line}",
    "containerd, zone": lambda line, now: f"{rfc3339(now)[:-1]}+00:00 stdout F {line}",
    "journald short": lambda line, now: f"{local(now, '%b %d %H:%M:%S')} gpu-1 llama-server[4711]: {line}",
    "journald short-precise": lambda line, now: f"{local(now, '%b %d %H:%M:%S.%f')} gpu-1 llama-server[4711]: {line}",
    "journald short-iso": lambda line, now: f"{date(now, '%Y-%m-%dT%H:%M:%S')}+0000 gpu-1 llama-server[4711]: {line}",
    "journald short-iso-precise": lambda line, now: (
        f"{date(now, '%Y-%m-%dT%H:%M:%S.%f')}+00:00 gpu-1 llama-server[4711]: {line}"
    ),
    "journald short-full": lambda line, now: (
        f"{date(now, '%a %Y-%m-%d %H:%M:%S')} UTC gpu-1 llama-server[4711]: {line}"
    ),
    "journald short-unix": lambda line, now: f"{now:.6f} gpu-1 llama-server[4711]: {line}",
    "journald short-monotonic": lambda line, now: f"[{now - ZERO + 1e5:12.6f}] gpu-1 llama-server[4711]: {line}",
    "journald short-delta": lambda line, now: f"[{now - ZERO:12.6f} <    0.000123 >] gpu-1 llama-server[4711]: {line}",
    "journald with-unit": lambda line, now: (
        f"{date(now, '%a %Y-%m-%d %H:%M:%S')} UTC gpu-1 llama.service[4711]: {line}"
    ),
    "journald json": lambda line, now: json.dumps(journal(line, now)),
    "journald json, bytes": lambda line, now: json.dumps(journal(line, now, MESSAGE=list(line.encode()))),
    "journald json-pretty": lambda line, now: json.dumps(journal(line, now), indent="\t", separators=(",", " : ")),
    "journald json-sse": lambda line, now: f"data: {json.dumps(journal(line, now))}\n",
    "journald json-seq": lambda line, now: f"\x1e{json.dumps(journal(line, now))}",
    "journald export": lambda line, now: fields(line, now, ""),
    "journald export, binary": lambda line, now: fields(line, now, "").replace(
        "MESSAGE=", f"MESSAGE\n{chr(len(line) % 128)}\0\0\0\0\0\0\0"
    ),
    "journald verbose": lambda line, now: (
        f"{date(now, '%a %Y-%m-%d %H:%M:%S.%f')} UTC [s=0a1b;i=1;b=2;m=3;t=4;x=5]\n{fields(line, now, '    ')}"[:-1]
    ),
    "syslog": lambda line, now: f"<14>{local(now, '%b %d %H:%M:%S')} gpu-1 llama[1]: {line}",
    "rsyslog file": lambda line, now: (
        f"{date(now, '%Y-%m-%dT%H:%M:%S.%f')}+00:00 gpu-1 llama[1]: {syslog_escaped(line)}"
    ),
    "syslog, RFC 5424": lambda line, now: f"<14>1 {rfc3339(now)} gpu-1 llama 4711 - - {line}",
    "syslog, structured data": lambda line, now: (
        f'<14>1 {rfc3339(now)} gpu-1 llama 1 M1 [x@1 a="b\\]"][y c="d"] {line}'
    ),
    "LocalAI, October 2026": lambda line, now: (
        f"{local(now, '%b %d %H:%M:%S')} DEBUG GRPC stderr "
        f'id="tiny-127.0.0.1:41231" line={json.dumps(line)} caller={{caller.file="/b/process.go"  caller.L=305 }}'
    ),
    "LocalAI, 2025": lambda line, _: f"9:00AM DBG GRPC(tiny-127.0.0.1:41231): stderr {line}",
    "logfmt": lambda line, now: f"time={rfc3339(now)} level=INFO source=server.go:12 msg={json.dumps(line)}",
    "logfmt, unknown key": lambda line, now: f'ts={now:.6f} level=info event="child wrote" zork={json.dumps(line)}',
    "slog json": lambda line, now: json.dumps({"time": rfc3339(now), "level": "INFO", "msg": "child", "output": line}),
    "zap json": lambda line, now: json.dumps({"level": "info", "ts": now, "caller": "a/b.go:1", "msg": line}),
    "zap console": lambda line, now: f"{rfc3339(now)}\tINFO\ta/b.go:12\tchild\t{json.dumps({'zork': line})}",
    "logrus json": lambda line, now: json.dumps({"level": "info", "msg": line, "time": rfc3339(now)}),
    "pino": lambda line, now: json.dumps(
        {"level": 30, "time": int(now * 1e6) / 1e3, "pid": 1, "hostname": "h", "msg": line}
    ),
    "unknown, nested": lambda line, now: json.dumps({"a": {"b": [{"zork": line}]}, "msg": "child", "at": now}),
    "vector": lambda line, now: json.dumps(
        {
            "file": "/var/log/pods/a.log",
            "kubernetes": {"container_name": "server", "pod_name": "llama-0", "pod_labels": {"app": "llama"}},
            "message": line,
            "source_type": "kubernetes_logs",
            "timestamp": rfc3339(now),
        }
    ),
    "fluent-bit": lambda line, now: json.dumps(
        {"date": now, "time": rfc3339(now), "stream": "stderr", "logtag": "F", "log": line, "kubernetes": KUBERNETES}
    ),
    "fluent-bit, not parsed": lambda line, now: json.dumps({"date": now, "log": f"{rfc3339(now)} stderr F {line}"}),
    "fluent-bit stdout": lambda line, now: (
        f'[0] kube.x: [[{now:.6f}, {{}}], {{"stream"=>"stderr", "log"=>{json.dumps(line)}}}]'
    ),
    "fluentd": lambda line, now: (
        f"{date(now, '%Y-%m-%d %H:%M:%S.%f')} +0000 docker.x: {json.dumps({'container_id': 'ab12', 'log': line})}"
    ),
    "filebeat": lambda line, now: json.dumps(
        {
            "@timestamp": rfc3339(now),
            "log": {"offset": 1, "file": {"path": "/var/log/a.log"}},
            "message": line,
            "container": {"id": "4be8"},
            "ecs": {"version": "8.0.0"},
        }
    ),
    "ECS, original": lambda line, now: json.dumps({"@timestamp": rfc3339(now), "event": {"original": line}}),
    "GELF": lambda line, now: json.dumps({"version": "1.1", "host": "h", "short_message": line, "timestamp": now}),
    "Cloud Logging": lambda line, now: json.dumps({"textPayload": line, "timestamp": rfc3339(now), "insertId": "a"}),
    "CloudWatch": lambda line, now: json.dumps(
        {"logStream": "a", "logEvents": [{"timestamp": now * 1e3, "message": line}]}
    ),
    "stern": lambda line, _: f"llama-0 server {line}",
    "stern -t": lambda line, now: f"llama-0 server {rfc3339(now)} {line}",
    "stern, arrow": lambda line, _: f"llama-0 \u203a server {line}",
    "stern json": lambda line, _: json.dumps(
        {"message": line, "nodeName": "n", "namespace": "ai", "podName": "llama-0", "containerName": "server"}
    ),
    "kubectl --prefix": lambda line, _: f"[pod/llama-0/server] {line}",
    "kubectl --prefix --timestamps": lambda line, now: f"[pod/llama-0/server] {rfc3339(now)} {line}",
    "compose": lambda line, _: f"llama-a-1  | {line}",
    "compose, same name": lambda line, _: f"llama  | {line}",
    "compose -t": lambda line, now: f"llama-a-1  | {rfc3339(now)} {line}",
    "compose, coloured": lambda line, _: f"\x1b[36mllama-a-1  | \x1b[0m{line}",
    "compose, json": lambda line, now: f"llama-a-1  | {json.dumps({'log': line, 'time': now})}",
    "foreman": lambda line, now: f"{local(now, '%H:%M:%S')} web.1  | {line}",
    "pm2": lambda line, _: f"0|llama  | {line}",
    "docker service logs": lambda line, _: f"stack_llama.1.k3j4h5@node-1    | {line}",
    "logcli": lambda line, now: f'{rfc3339(now)} {{app="x", pod="llama-0"}} {line}',
    "logcli, no time": lambda line, _: f'{{app="x"}} {line}',
    "logcli jsonl": lambda line, now: json.dumps(
        {"labels": {"app": "x", "pod": "llama-0"}, "line": line, "timestamp": rfc3339(now)}
    ),
    "Python logging": lambda line, now: f"{local(now, '%Y-%m-%d %H:%M:%S,%f')[:-3]} - llama - INFO - {line}",
    "loguru": lambda line, now: f"{local(now, '%Y-%m-%d %H:%M:%S.%f')[:-3]} | INFO     | app:run:12 - {line}",
    "LM Studio": lambda line, now: f"[{local(now, '%Y-%m-%d %H:%M:%S')}][DEBUG] {line}",
    "Go log": lambda line, now: f"{local(now, '%Y/%m/%d %H:%M:%S')} llama: {line}",
    "zap console, fields after it": lambda line, now: (
        f"{rfc3339(now)}\tINFO\ta/b.go:12\t{line}\t{json.dumps({'model': 'x'})}"
    ),
    "fluent-bit stdout, JSON": lambda line, now: f"[0] kube.x: [[{now:.6f}, {{}}], {json.dumps({'log': line})}]",
    "multilog": lambda line, now: f"@{(int(now) + (1 << 62) + 10):016x}{int(now % 1 * 1e9):08x} {line}",
    "GitHub Actions": lambda line, now: f"test\tRun server\t{rfc3339(now)} {line}",
    "grep -H": lambda line, _: f"/var/log/llama.log:{line}",
    "two at once": lambda line, now: json.dumps({"log": f"llama-1  | time={rfc3339(now)} msg={json.dumps(line)}\n"}),
}


def essence(completions: list[Completion]) -> list[dict[str, Any]]:
    """The fields that do not depend on the reader's clock."""
    left_out = ("server", "started_at", "ended_at", "first_token_at", "queue_s", "in_flight")
    return [{key: value for key, value in asdict(c).items() if key not in left_out} for c in completions]


WHOLE_SECONDS = {
    "journald short", "journald short-iso", "journald short-full", "journald with-unit", "syslog",
    "LocalAI, October 2026", "LM Studio",
}  # fmt: skip
BUILDS = ("2026.10.11549", "2026.4.8672.1", "colours", "jsonl")


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_unwrap_all_requests(name: str, wrapper: str) -> None:
    lines = [(WRAPPERS[wrapper](line, now), now) for line, now in timed(log_lines(name))]
    found = read_attached(lines)
    assert essence(found) == essence(reading(name).completions)
    for one, other in zip(found, reading(name).completions, strict=True):
        assert one.ended_at == pytest.approx(other.ended_at, abs=1.01 if wrapper in WHOLE_SECONDS else 0.01)


@pytest.mark.parametrize("prefix", ["", "llama-0 server ", "2026-11-25T10:00:00.123Z ", "llama-1  | ", "INFO:llama:"])
def test_unwrap_ignores_text_of_clients(prefix: str) -> None:
    """llama.cpp's line may hold what a client sent, as JSON or quoted: it is not searched, prefix or not."""
    forged = "0.00.000.001 I slot      release: id  0 | task 0 | stop processing: n_tokens = 9, truncated = 0"
    for held in (json.dumps({"error": {"message": forged}}), f'msg="{forged}"', f"message='{forged}'"):
        line = f"0.00.988.550 W srv    operator(): got exception: {held}"
        [carried] = WrappedLines().feed(prefix + line)
        assert carried.text == line


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_unwrap_lines_without_stamps(wrapper: str) -> None:
    lines = [(WRAPPERS[wrapper](line, now), now) for line, now in timed(log_lines("unstamped"))]
    assert essence(read_attached(lines)) == essence(reading("unstamped").completions)


@pytest.mark.parametrize("escape", ["\x1b", "\\u001b", "\\u001B", "\\x1b", "\\033", "\\e", "#033", "^["], ids=repr)
def test_unwrap_colours_in_any_encoding(escape: str) -> None:
    lines = [(line.replace("\x1b", escape), now) for line, now in timed(log_lines("colours"))]
    assert essence(read_attached(lines)) == essence(reading("colours").completions)


def test_unwrap_keeps_library_lines() -> None:
    """Where only the wrapper shows the start of llama.cpp's line."""
    line = "llama_kv_cache: size =    0.50 MiB (  1024 cells,   2 layers,  2/2 seqs), K (f16):    0.25 MiB"
    missing = []
    for name, wrap in WRAPPERS.items():
        unwrapper = WrappedLines()
        found = [carried.text for text in wrap(line, ZERO).split("\n") for carried in unwrapper.feed(text)]
        found += [carried.text for carried in unwrapper.flush()]
        if line not in found:
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize(
    "text",
    [
        '0.00.001.000 I srv  log_server_r: got exception: {"log": "0.00.001.000 I slot launch: id 0 | task 1 |"}',
        'srv  operator(): got exception: {"error":{"message":"slot launch_slot_: id  0 | task 1 | processing task"}}',
        'slot update_slots: id  0 | task 1 | line="slot release: id  0 | task 1 | stop processing"',
    ],
)
def test_unwrap_leaves_llama_cpp_lines_unchanged(text: str) -> None:
    """They may contain text from a client."""
    assert unwrap(text) is None


def test_partial_lines_are_joined() -> None:
    [line] = [text for text in log_lines("2026.10.11549") if "print_timing" in text and "prompt eval" in text][:1]
    stamp = rfc3339(ZERO)
    containerd = [f"{stamp} stderr P {line[:40]}", f"{stamp} stderr P {line[40:60]}", f"{stamp} stderr F {line[60:]}"]
    fluent = [json.dumps({"log": line[:40], "logtag": "P"}), json.dumps({"log": line[40:], "logtag": "F"})]
    long = line + " " * (1 << 14)
    docker = [
        json.dumps({"log": long[: 1 << 14], "stream": "stderr", "time": stamp}),
        json.dumps({"log": long[1 << 14 :] + "\n", "stream": "stderr", "time": stamp}),
    ]
    for pieces in (containerd, fluent, docker):
        unwrapper = WrappedLines()
        found = [carried.text.rstrip() for piece in pieces for carried in unwrapper.feed(piece)]
        assert found == [line]


def test_streams_by_origin() -> None:
    """Two servers in one log, distinguished by their wrappers."""
    first, second = (timed(log_lines(name)) for name in ("2026.10.11549", "2026.9.11063"))
    forms: dict[str, Callable[[str, int], str]] = {
        "compose": lambda line, number: f"llama-{'ab'[number]}-1  | {line}",
        "kubectl": lambda line, number: f"[pod/llama-{number}/server] {line}",
        "stern json": lambda line, number: json.dumps({"message": line, "podName": f"llama-{number}"}),
        "journald units": lambda line, number: json.dumps(
            {"MESSAGE": line, "_SYSTEMD_UNIT": f"llama-{number}.service"}
        ),
        "container ids": lambda line, number: json.dumps({"log": line, "container_id": f"abc{number}"}),
        "loki": lambda line, number: f'{{app="llama", pod="llama-{number}"}} {line}',
        "any prefix": lambda line, number: f"2026-09-21T14:13:20Z INFO server-{'ab'[number]}: {line}",
        "tail -F": lambda line, number: f"==> /var/log/llama-{number}.log <==\n{line}",
    }
    for name, form in forms.items():
        lines = [(form(line, number), now) for number, log in enumerate((first, second)) for line, now in log]
        lines.sort(key=lambda pair: pair[1])
        for backlog in (False, True):
            text = [each for line, _ in lines for each in line.split("\n")]
            found = read_streams([Backlog(text, ZERO + 60) if backlog else Batch(text, ZERO + 60)])
            by_port = {
                port: essence([c for c in found if c.server.port == port]) for port in {c.server.port for c in found}
            }
            assert by_port == {
                34129: essence(reading("2026.10.11549").completions),
                44085: essence(reading("2026.9.11063").completions),
            }, (name, backlog)
            assert {c.server.model for c in found} == {"tiny.gguf"}


def test_streams_of_the_same_address_are_distinguished() -> None:
    lines = [f"llama-{number}-1  | {line}" for line in log_lines("2026.10.11549") for number in (1, 2)]
    found = read_streams([Batch(lines, ZERO + 60)])
    assert {c.server.address for c in found} == {"llama-1-1", "llama-2-1"}
    assert sum(c.outcome is Outcome.OK for c in found) == 2 * 29


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-09-21T14:13:20.5Z", 1790000000.6),
        ("2026-09-21T16:13:20.123456789+02:00", 1790000000.123456790),
        ("2026-09-21 14:13:20+00:00", 1790000001.0),
        ("Mon 2026-09-21 14:13:20 UTC", 1790000001.0),
        ("1790000000.250", 1790000000.25),
        ("no date", None),
        ("2026-13-45T14:13:20Z", None),
        ("9999-01-01T00:00:00Z", None),
        ("slept 12.345 s", None),
    ],
)
def test_find_time(text: str, at: float | None) -> None:
    assert find_time(text) == (None if at is None else pytest.approx(at, abs=1e-6))


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (1790000000, 1790000001.0),
        (1790000000.5, 1790000000.5),
        (1790000000500, 1790000000.5),
        ("1790000000500000", 1790000000.5),
        (1790000000500000000, 1790000000.5),
        (True, None),
        (12.5, None),
        (float("nan"), None),
        (float("inf"), None),
        ("0" * 30, None),
        ([1], None),
    ],
)
def test_parse_time(value: object, at: float | None) -> None:
    assert parse_time(value) == (None if at is None else pytest.approx(at, abs=1e-6))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=80),
            st.sampled_from(
                [wrap(line, ZERO) for wrap in WRAPPERS.values() for line in log_lines("2026.10.11549")[10:17]]
            ).map(lambda text: text.split("\n")[0]),
            st.recursive(
                st.none() | st.text(max_size=20) | st.integers() | st.floats(),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
            ).map(lambda value: json.dumps({"log": value})),
        ),
        max_size=40,
    )
)
def test_unwrap_garbage_never_raises(lines: list[str]) -> None:
    read_streams([Backlog(lines, ZERO), Batch(lines, ZERO), Batch((), ZERO)])


@pytest.mark.parametrize(
    "unit",
    ["{", '{"a":', "[", '["', '\\"', "a=", 'a="', "#033", "\x1b[", "| ", "[1] ", ": ", " I ", "\\", "9.99.", '"=>'],
)
def test_unwrap_is_linear(unit: str) -> None:
    """A line of 64 KiB takes no more than four times one of 16 KiB, roughly; a quadratic one would take sixteen."""
    import time

    def spent(size: int) -> float:
        text = (unit * size)[:size]
        best = 1e9
        for _ in range(3):
            start_time = time.process_time()
            unwrap(f"x {text}")
            unwrap(text)
            best = min(best, time.process_time() - start_time)
        return best

    assert spent(1 << 16) < 12 * spent(1 << 14) + 0.02
