"""Secrets in every place that takes one: none appears in a message, a span, a metric, a page, a file or an argument."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llamatel
from llamatel.cli.main import main
from llamatel.errors import LlamatelError, UsageError, redacted
from llamatel.llama.server.server_command import build
from llamatel.telemetry.settings import Settings
from tests.parts import OtlpSink, wait_until
from tests.servers import complete
from tests.serving import servings
from tests.untrusted_server import UntrustedServer, http

pytestmark = pytest.mark.usefixtures("no_settings")

Run = Callable[[tuple[str, ...], dict[str, str]], tuple[int, str]]
SECRET = "sk-LEAK-7f3a9"  # noqa: S105
PATHS = (
    "/health", "/props", "/slots", "/metrics", "/v1/models", "/live.json", "/m.gguf", "/api/health", "/api/models/a/b",
    "/running", "/api/ps",
)  # fmt: skip
URLS = (
    f"http://u:{SECRET}@127.0.0.1:9", f"http://{SECRET}@127.0.0.1:9", f"http://u:{SECRET}?@127.0.0.1:9",
    f"http://u:{SECRET}/x@127.0.0.1:9", f"http://127.0.0.1:9/?api_key={SECRET}", f"http://127.0.0.1:9/#{SECRET}",
    f"u:{SECRET}@127.0.0.1:9", f"http://u:{SECRET}@127.0.0.1:bad", f"http://u:{SECRET}@[::bad",
    f"ftp://u:{SECRET}@127.0.0.1:9", f"https://u:{SECRET}%40@127.0.0.1:9", f"http:/u:{SECRET}@127.0.0.1:9",
    f"http//u:{SECRET}@127.0.0.1:9", f"unix://u:{SECRET}@/x.sock",
)  # fmt: skip
"""Well-formed and malformed."""
NO_PORT = ("--metrics-addr", "none")
WITH_URL: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "attach": (("attach", "{}", "--metrics-addr", "x"), {}),
    "attach --llama-swap": (("attach", *NO_PORT, "--llama-swap", "{}"), {}),
    "attach --ollama": (("attach", *NO_PORT, "--ollama", "{}"), {}),
    "attach --metrics-addr": (("attach", "http://127.0.0.1:9", "--metrics-addr", "{}"), {}),
    "top": (("top", "--once", "{}"), {}),
    "doctor": (("doctor", "{}"), {}),
    "inspect": (("inspect", "{}/m.gguf"), {}),
    "plan": (("plan", "{}/m.gguf"), {}),
    "explore": (("explore", "{}/m.gguf"), {}),
    "serve": (("serve", "{}/m.gguf", *NO_PORT), {}),
    "serve --host": (("serve", "tiny", "--host", "{}", *NO_PORT), {}),
    "dashboards push": (("dashboards", "push", "{}"), {}),
    "dashboards export": (("dashboards", "export", "out", "--prometheus-url", "{}", "--tempo-url", "{}"), {}),
    "proxies": (("inspect", "http://model.invalid/m.gguf"), {"http_proxy": "{}", "HTTP_PROXY": "{}"}),
    "HF_ENDPOINT": (("inspect", "a/b"), {"HF_ENDPOINT": "{}"}),
    "OLLAMA_HOST": (("inspect", "ollama://a:b"), {"OLLAMA_HOST": "{}"}),
}  # fmt: skip
"""Commands with a URL, which end by themselves, and their environment."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command with ``-vv``, which shows all that fewer do; returns its exit code and its output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text(SECRET)

    def run(arguments: tuple[str, ...], environ: dict[str, str]) -> tuple[int, str]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            if "HF_ENDPOINT" in environ:
                patch.setattr("huggingface_hub.constants.ENDPOINT", environ["HF_ENDPOINT"])
            if "HF_TOKEN" in environ:
                patch.setenv("HF_HOME", str(tmp_path))
            code = main(["-vv", *arguments])
        llamatel.shutdown()
        output = "".join(capfd.readouterr())
        assert SECRET not in output
        assert "defect" not in output
        return code, output

    return run


@pytest.mark.parametrize("name", WITH_URL)
def test_secret_in_a_url_is_not_shown(name: str, run: Run) -> None:
    arguments, environ = WITH_URL[name]
    for url in URLS:
        if name in ("attach", "serve --host") and url == URLS[-1]:
            continue  # a path
        code, output = run(
            tuple(word.replace("{}", url) for word in arguments),
            {key: value.replace("{}", url) for key, value in environ.items()},
        )
        assert code in (0, 1, 2)
        assert code == 0 or "llamatel: error: " in output


@pytest.mark.parametrize("behaviour", ["refused", "401", "redirect"])
def test_secret_in_a_header_is_not_shown(behaviour: str, run: Run) -> None:
    """API keys, headers and tokens from files and the environment; other servers do not get them."""
    other = UntrustedServer({})
    redirect = http(b"", "302 Found", f"Location: {other.url}/x?token={SECRET}\r\n")
    denied = http({"error": {"message": f"Invalid: {SECRET}"}}, "401 Unauthorized")
    server = UntrustedServer(dict.fromkeys(PATHS, denied if behaviour == "401" else redirect))
    url = "http://127.0.0.1:9" if behaviour == "refused" else server.url
    Path("header").write_text(f"X-Key: {SECRET}\n")
    commands: list[tuple[tuple[str, ...], dict[str, str]]] = [
        (("attach", url, "--metrics-addr", "x", "--api-key-file", "key"), {}),
        (("attach", "--llama-swap", url, *NO_PORT, "--api-key-file", "key"), {}),
        (("attach", "--ollama", url, *NO_PORT, "--header-file", "header"), {}),
        (("top", "--once", url), {"LLAMA_API_KEY": SECRET}),
        (("top", "--once", url, "--page-token-file", "key"), {}),
        (("doctor", "--for", "1", url, "--header-file", "header"), {}),
        (("dashboards", "push", url, "--token-file", "key"), {}),
        (("dashboards", "push", url), {"GRAFANA_TOKEN": SECRET}),
        (("inspect", "a/b"), {"HF_ENDPOINT": url, "HF_TOKEN": SECRET}),
        (("plan", "a/b"), {"HF_ENDPOINT": url, "HF_TOKEN": SECRET}),
        (("inspect", f"{url}/m.gguf"), {"HF_TOKEN": SECRET}),
    ]
    for arguments, environ in commands:
        if behaviour == "401" and arguments[0] == "dashboards":
            continue  # Grafana's own words are shown
        run(arguments, environ)
    assert not any(SECRET.encode() in head.partition(b"?")[0] + head.partition(b"\r\n")[2] for head in other.requests)
    server.close()
    other.close()


@pytest.mark.parametrize("content", [f"{SECRET}\x01", f"{SECRET}\n{SECRET}\n", f"X {SECRET}: a\n", f"{SECRET} a"])
def test_secret_in_a_malformed_file_is_not_shown(content: str, run: Run) -> None:
    Path("file").write_text(content)
    for option in ("--api-key-file", "--header-file", "--ca-file", "--client-cert", "--page-token-file"):
        run(("top", "--once", "http://127.0.0.1:9", option, "file"), {})
    run(("dashboards", "push", "http://127.0.0.1:9", "--token-file", "file"), {})
    for command in ("inspect", "plan"):
        run((command, "file"), {})


@pytest.mark.parametrize(
    "arguments",
    [
        ("attach", "http://127.0.0.1:9", *NO_PORT, "--api-key-file"), ("serve", "tiny", *NO_PORT, "--api-key-file"),
        ("top", "--once", "http://127.0.0.1:9", "--header-file"), ("top", "--once", "http://127.0.0.1:9", "--ca-file"),
        ("top", "--once", "http://127.0.0.1:9", "--client-cert"),
        ("attach", "http://127.0.0.1:9", *NO_PORT, "--page-token-file"),
        ("dashboards", "push", "http://127.0.0.1:9", "--token-file"),
        ("serve", "tiny", *NO_PORT, "--", "--api-key-file"),
    ],
    ids=lambda words: "_".join((words[0], words[-1])),
)  # fmt: skip
def test_secret_instead_of_its_file_is_not_shown(arguments: tuple[str, ...], run: Run) -> None:
    for value in (SECRET, f"{SECRET}/x+y", "https://u:" + SECRET + "@h"):
        code, output = run((*arguments, value), {})
        assert (code, output.count("llamatel: error: ")) == (2, 1)


TARGETS = (
    f"u:{SECRET}@h", f"http://{SECRET}:x", f"ftp://{SECRET}", f"http://h?{SECRET}", f"unix:{SECRET}",
    f"127.0.0.1:{SECRET}", f"unix://{SECRET}", f"http://h:8080 {SECRET}",
)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_secret_in_a_file_of_targets_is_not_shown(target: str, run: Run) -> None:
    address, _, key = target.partition(" ")
    group = {"targets": [address], "labels": {"__api_key_file__": key}}
    for name, text in (
        ("list", target),
        ("sd.json", json.dumps([group])),
        ("sd.yml", f"- targets: ['{address}']\n  labels: {{__api_key_file__: '{key}'}}"),
        ("label.json", json.dumps([{"targets": ["h:1"], "labels": {SECRET: "x"}}])),
        ("broken.json", f'[{{"targets": {SECRET}'),
        ("alias.yml", f"- targets: *{SECRET}"),
        ("tag.yml", f"- !{SECRET} x"),
        ("tag-handle.yml", f"- !{SECRET}!x x"),
        ("directive.yml", f"%{SECRET} x\n--- x"),
    ):
        Path(name).write_text(text)
        run(("attach", *NO_PORT, "--targets", name), {})


@pytest.mark.parametrize("command", ["serve", "attach", "top", "inspect", "plan", "doctor", "demo", "dashboards"])
def test_secret_in_an_unknown_option_is_not_shown(command: str, run: Run) -> None:
    for words in ((f"--api-key={SECRET}",), ("--password", SECRET), ("--", f"--hf-token={SECRET}")):
        if words[0] != "--" or command in ("inspect", "plan"):
            assert run((command, *words), {})[0] == 2


HEADERS = (
    SECRET, f"authorization=Bearer {SECRET}", f"auth orization={SECRET}", f"={SECRET}", f"a=b,{SECRET}",
    f"{SECRET}=%ZZ=", f"x=%00{SECRET}", f"authorization:{SECRET}",
)  # fmt: skip


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_init_secrets_are_not_shown(
    protocol: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Endpoints and headers of OTLP, as arguments and as variables."""
    caplog.set_level(logging.DEBUG)
    shown = ""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    for variable, values in (
        ("OTEL_EXPORTER_OTLP_HEADERS", HEADERS),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", HEADERS[:2]),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", URLS),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", URLS[:2]),
        ("LLAMATEL_URL", URLS[:4]),
        ("LLAMATEL_PAGE_TOKEN", (SECRET, f"{SECRET}\x01", f"{SECRET} a")),
        ("OTEL_EXPORTER_PROMETHEUS_HOST", URLS[:4]),
        ("otlp_endpoint", URLS),
        ("metrics_addr", URLS),
    ):
        for value in values:
            arguments: dict[str, Any] = {"otlp_protocol": protocol, "metrics_addr": "none"}
            if variable.isupper() and "ENDPOINT" not in variable:
                arguments["otlp_endpoint"] = "http://127.0.0.1:9"
            with monkeypatch.context() as patch:
                if variable.isupper():
                    patch.setenv(variable, value)
                else:
                    arguments[variable] = value
                try:
                    settings = Settings.from_env(**arguments, strict=False, shutdown_timeout_s=0.2)
                    running = llamatel.init(settings)
                    with llamatel.span("work"):
                        shown += f"{running.settings} {running.pipeline.otlp_endpoint}".replace(value, "")
                    llamatel.shutdown()
                except LlamatelError as error:
                    shown += f"{error} {error.__cause__ or ''}"
    assert SECRET not in shown + caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "words",
    [
        "--api-key {}", "--api-key={}", "--api_key {}", "-hft {}", "--hf-token={}", "-mu http://u:{}@h/m.gguf",
        "--model_url http://h/m.gguf?sig={}", "-mmu http://h/p.gguf?sig={}", "--mcp-servers-json {}",
        "--mcp_servers_json {}",
    ],
)  # fmt: skip
def test_command_line_secrets_are_passed_in_the_environment(words: str) -> None:
    command = build(None, host="127.0.0.1", port=8090, extra_args=["-c", "1", *words.format(SECRET).split(" ", 1)])
    assert SECRET not in " ".join(command.arguments)
    assert command.arguments[-2:] == ("-c", "1")
    assert [SECRET in value for value in command.environment.values()] == [True]


def test_command_line_url_without_secret_stays() -> None:
    command = build(None, host="127.0.0.1", port=8090, extra_args=["-mu", "http://h/m.gguf"])
    assert command.arguments[-2:] == ("-mu", "http://h/m.gguf")


@pytest.mark.parametrize("host", ["http://x", "u:p@h", "a b", ""])
def test_command_line_host_is_no_host(host: str) -> None:
    with pytest.raises(UsageError, match="not a host name"):
        build(None, host=host, port=8090)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot fetch http://u:p@h:1/x: refused", "cannot fetch http://...@h:1/x: refused"),
        ("'http://h/x?sig=1', again", "'http://h/x?...', again"),
        ("bad argument (--hf-token=abc)", "bad argument (--hf-token=...)"),
        ("mail me@example.org = no? key=", "mail me@example.org = no? key="),
        ("http://...@h/x?...", "http://...@h/x?..."),
    ],
)
def test_redacted(text: str, shown: str) -> None:
    assert redacted(text) == shown


def _arguments_of_all(pid: int) -> str:
    """The arguments of a process's descendants."""
    parents, found = {pid}, ""
    for entry in sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            if parent in parents:
                parents.add(entry)
                found += Path(f"/proc/{entry}/cmdline").read_text()
        except OSError:
            continue
    return found


@pytest.mark.parametrize("given", ["argument", "variable"])
def test_serve_secrets_are_used_and_not_shown(
    given: str, tiny_model: Path, tmp_path: Path, otlp_sink: OtlpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A served request with every kind of secret configured: output, metrics, page, spans, files, arguments."""
    environ = {
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-key={SECRET}", "HF_TOKEN": SECRET, "GRAFANA_TOKEN": SECRET,
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_sink.endpoint.replace("://", f"://u:{SECRET}@"),
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_METRICS_EXPORTER": "otlp,prometheus",
    }  # fmt: skip
    if given == "variable":
        environ["LLAMA_API_KEY"] = SECRET
    else:
        monkeypatch.setattr("tests.serving.FLAGS", ("--", "-t", "1", "--api-key", SECRET, "-hft", SECRET, "-lv", "5"))
    verbose = ("-vv", "--server-log", str(tmp_path / "copy"))
    with servings(tmp_path, tiny_model) as start:
        serving = start(*verbose, env=environ)
        assert complete(serving.url, 2, key=SECRET) == 200
        assert complete(serving.url, 2) == 401
        wait_until(lambda: serving.rows.exists() and serving.rows.read_text(), 30, "the request's row")
        shown = [Path(f"/proc/{serving.server_pid}/cmdline").read_text()]
        for path in ("/metrics", "/", "/live.json", "/servers.json"):
            with urllib.request.urlopen(serving.page_url + path, timeout=30) as response:
                shown.append(response.read().decode())
    assert serving.records()
    assert any(request.headers.get("x-key") == SECRET for request in otlp_sink.requests)
    shown += [path.read_text(errors="replace") for path in tmp_path.iterdir() if path.is_file()]
    shown += [str((span.attributes, span.resource, span.status_message)) for span in otlp_sink.spans()]
    shown += [str(metric) for metric in otlp_sink.metrics()]
    assert [text for text in shown if SECRET in text] == []
