"""Which program answers at an address: llama.cpp or another. Other programs are stand-ins with their responses."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.records import ServerInfo
from tests.attached import attached, unmanaged
from tests.certificates import make_certificate
from tests.parts.forwarder import Forwarder
from tests.untrusted_server import Bytes, UntrustedServer, http, usual_responses

pytestmark = pytest.mark.usefixtures("no_settings")

HTML = http(
    b"<!doctype html><html><head><title>Welcome to nginx!</title></head></html>", more="Content-Type: text/html\r\n"
)
WEBUI = http(b"<!doctype html><html><head><title>Open WebUI</title></head><body></body></html>")
VLLM_METRICS = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\n"
KOBOLD_PROPS = {"chat_template": "x", "total_slots": 1, "default_generation_settings": {"n_ctx": 8192}}
PYTHON = "Server: BaseHTTP/0.6 Python/3.12\r\n"
LM_STUDIO = http({"error": "Unexpected endpoint or method. (GET /health). Returning 200 anyway"})


def models(owner: str) -> bytes:
    """``/v1/models`` of another program."""
    return http({"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": owner}]})


class Everything(dict[str, Bytes]):
    """The same response for every path, except for ``others``."""

    def __init__(self, answer: Bytes, **others: Bytes) -> None:
        super().__init__({f"/{path}": other for path, other in others.items()})
        self.answer = answer

    def get(self, path: str, default: Bytes | None = None) -> Bytes:  # type: ignore[override]
        return super().get(path, self.answer) or b""


@pytest.fixture
def server() -> Iterator[UntrustedServer]:
    made = UntrustedServer({})
    yield made
    made.close()


def observe(server: UntrustedServer, prefix: str = "") -> ObservedServer:
    observed = ObservedServer(ServerInfo("h", 1), client=ServerClient(server.url + prefix, timeout_s=2.0))
    for _ in range(2):
        observed.poll()
    observed.close()
    return observed


@pytest.mark.parametrize(
    ("answers", "name"),
    [
        ({"/": HTML, "/health": http({"status": "ok"})}, r"a web page \('Welcome to nginx!'\)"),
        (Everything(HTML), "a web page"),
        (Everything(WEBUI, health=http({"status": True})), "Open WebUI, not llama.cpp: give the address"),
        ({"/health": http(b"OK"), "/running": http({"running": []}), "/metrics": http(b"llama_swap_x 1\n")},
         "llama-swap, not llama.cpp: attach --llama-swap"),
        ({"/": http(b"Ollama is running"), "/api/version": http({"version": "0.30.0"})},
         "Ollama, not llama.cpp: give it Ollama's log"),
        ({"/health": http(b""), "/metrics": http(VLLM_METRICS),
          "/v1/models": models("vllm")}, "vLLM, not llama.cpp"),
        ({"/health": http(b""), "/v1/models": models("sglang"), "/get_model_info": http({})}, "SGLang, not"),
        ({"/health": http(b""), "/info": http({"model_id": "m", "router": "text-generation-router"}),
          "/metrics": http(b"tgi_queue_size 0\n")}, "Text Generation Inference"),
        # KoboldCpp has /props with llama.cpp's keys.
        ({"/health": http({"status": "ok"}), "/props": http(KOBOLD_PROPS), "/v1/models": models("koboldcpp")},
         "KoboldCpp, not llama.cpp"),
        ({"/api/extra/version": http({"result": "KoboldCpp", "version": "1.99"}), "/props": http(KOBOLD_PROPS)},
         "KoboldCpp, not llama.cpp"),
        ({"/v1/models": models("me")}, "llama-cpp-python's server"),
        ({"/health": http({"status": "ok"}), "/v1/models": models("user")}, "text-generation-webui"),
        ({"/health": http({"status": "ok"}, more=PYTHON), "/v1/models": http(
            {"object": "list", "data": [{"id": "m", "object": "model", "created": 1}]}, more=PYTHON)}, "an MLX server"),
        ({"/": http(b"<!DOCTYPE html><html><head><title>LocalAI API - v3</title>"), "/readyz": http(b"OK"),
          "/v1/models": http({"object": "list", "data": [{"id": "m", "object": "model"}]})}, "LocalAI, not llama.cpp"),
        ({"/": http(b"<html><title>Jan API Server</title>")}, "Jan, not llama.cpp"),
        (Everything(http(b"<a href=/login>Found</a>", "302 Found", "Location: /login\r\n"),
                    **{"api/health": http({"database": "ok", "version": "12.0", "commit": "x"})}), "Grafana"),
        (Everything(http(b"", "301 Moved Permanently", "Location: https://x/\r\n")),
         "a program that llamatel does not know"),
        (Everything(http({"method": "GET", "path": "/", "headers": {"Host": "x"}, "status": "ok"})),  # a JSON echo
         "a program that llamatel does not know"),
        (Everything(LM_STUDIO, v1=LM_STUDIO), "LM Studio, not llama.cpp"),
        ({"/": http(b"llamatel"), "/metrics": http(b"# llamatel\nllamacpp_server_up 1\n")}, "another llamatel"),
        ({"/health": http({"status": "ok"}), "/props": http({"hello": 1}), "/metrics": http(b"x 1\n")},
         "a program that llamatel does not know"),
        ({"/metrics": http(VLLM_METRICS), "/v1/models": http({}, "401 Unauthorized")}, "vLLM, not llama.cpp"),
        ({"/v1/models": models("exo")}, "a server of models owned by 'exo', not llama.cpp"),
        ({"/info": http({"model_type": {}, "max_batch_tokens": 1})}, "Text Embeddings Inference"),
        ({"/system": http({"backends": []}), "/healthz": http(b"")}, "LocalAI, not llama.cpp"),
        ({"/v2": http({"name": "triton"})}, "Triton Inference Server"),
        ({"/-/healthy": http(b"Prometheus Server is Healthy.\n")}, "Prometheus, not llama.cpp"),
        (Everything(http(b"", "302 Found", "Location: https://u:p@sso.example:8443/login?token=s3cret\r\n")),
         r"a program that llamatel does not know, not llama.cpp: it redirects to https://sso.example:8443/login$"),
    ],
)  # fmt: skip
def test_identify_other_programs(
    answers: Mapping[str, Bytes], name: str, server: UntrustedServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = answers  # type: ignore[assignment]
    [state] = observe(server).snapshots()
    assert (state.up, state.state, state.counters, state.slots, state.kv_cache) == (None, None, {}, None, None)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert re.match(f"{re.escape(server.url)} is {name}", lines[0])


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (http(b'{"detail":"Not Found"}', "404 Not Found"),
         "no llama.cpp server, or the path is wrong (it looks like a Python web application: FastAPI)"),
        (http(b"404 page not found\n", "404 Not Found"),
         "no llama.cpp server, or the path is wrong (it looks like a Go program)"),
        (http(b"<html>", "404 Not Found", "Server: nginx\r\n"),
         "no llama.cpp server, or the path is wrong (it looks like nginx)"),
        (http(b"", "404 Not Found"), "no llama.cpp server, or the path is wrong"),
    ],
)  # fmt: skip
def test_identify_unknown_program_is_down_after_two_polls(
    answer: bytes, line: str, server: UntrustedServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = Everything(answer)
    [state] = observe(server).snapshots()
    assert (state.up, state.state) == (False, None)
    status = answer[9:12].decode()
    assert [record.getMessage() for record in caplog.records] == [f"{server.url} answered {status}: {line}"]


def test_identify_plain_http_to_a_tls_port(
    server: UntrustedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = make_certificate(tmp_path)
    pem = tmp_path / "both.pem"
    pem.write_text(key.read_text() + certificate.read_text())
    with Forwarder(int(server.url.rpartition(":")[2]), certificate=pem) as forwarder:
        url = f"http://127.0.0.1:{forwarder.ports[0]}"
        observed = ObservedServer(ServerInfo("h", 1), client=ServerClient(url, timeout_s=2.0))
        for _ in range(2):
            observed.poll()
        observed.close()
    assert observed.snapshots()[0].up is False
    assert [record.getMessage() for record in caplog.records] == [f"{url} expects TLS: give it as https://"]


def test_identify_llama_swap_upstream_is_not_polled(server: UntrustedServer, caplog: pytest.LogCaptureFixture) -> None:
    """A request below /upstream/ would load the model, or keep it loaded."""
    server.answers = usual_responses(running=http({"running": []})) | {
        f"/upstream/qwen{path}": answer for path, answer in usual_responses().items()
    }
    [state] = observe(server, "/upstream/qwen").snapshots()
    assert state.up is None
    assert not [head for head in server.requests if b"/upstream/" in head]
    assert "is llama-swap, not llama.cpp: attach --llama-swap URL" in caplog.text


@pytest.mark.parametrize(
    "answers",
    [
        usual_responses(),
        usual_responses(props=http({"role": "router"}), models=http({"data": []})),
        usual_responses(props=http({"default_generation_settings": {}})),
        usual_responses(props=http(b"", "404 Not Found")),  # identified by its metrics
        usual_responses(health=http({"status": "ok"}, more="Server: llama.cpp\r\n"), props=http(b"junk")),
    ],
)
def test_identify_llama_cpp_by_its_responses(
    answers: dict[str, Bytes], server: UntrustedServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = answers
    assert observe(server).snapshots()[0].up is True
    assert "not llama.cpp" not in caplog.text


def test_identify_llama_cpp_loading_or_refusing_key(server: UntrustedServer, caplog: pytest.LogCaptureFixture) -> None:
    loading = http({"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, "503 Unavailable")
    server.answers = usual_responses(health=loading)
    assert [(state.up, state.state) for state in observe(server).snapshots()] == [(False, "starting")]
    refused = http({"error": {"type": "authentication_error", "code": 401}}, "401 Unauthorized")
    server.answers = usual_responses(props=refused, metrics=refused, slots=refused)
    assert [state.up for state in observe(server).snapshots()] == [True]
    assert "the API key is missing or wrong" in caplog.text


def test_identify_llama_cpp_replaced_by_another_program(server: UntrustedServer) -> None:
    """Its server is down: an absent series would raise no alert."""
    server.answers = usual_responses()
    observed = ObservedServer(ServerInfo("h", 1), client=ServerClient(server.url, timeout_s=2.0))
    observed.poll()
    assert observed.snapshots()[0].up is True
    server.answers = Everything(HTML)
    for _ in range(2):
        observed.poll()
    observed.close()
    assert observed.snapshots()[0].up is False


def test_identify_real_servers(llama_server_binary: Path, sid_server: Path, tiny_model: Path, tmp_path: Path) -> None:
    for program in (llama_server_binary, sid_server):
        with unmanaged(program, tmp_path, "-m", tiny_model) as running, attached(running.url) as fleet:
            assert fleet.wait(lambda state: state.up).server.build
