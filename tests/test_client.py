"""LlamaCppClient against llama.cpp's servers."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamatel.errors import (
    BadRequest,
    ConnectError,
    ContextTooLong,
    InvalidResponse,
    NotAuthorized,
    NotSupported,
    RequestError,
    RequestTimeout,
    ServerNotReady,
    UsageError,
)
from llamatel.llama import LlamaCppClient, ServerManager
from llamatel.llama.client.llama_client import _sent
from llamatel.llama.client.result import Result
from llamatel.llama.client.token_stream import EventLines
from llamatel.records import Outcome
from tests.parts import free_port
from tests.servers import BACKENDS, LONG, choose_backend

HELLO = [{"role": "user", "content": "Hello"}]
KEY = "sk-of-the-tests"
CONTEXT = 4096
FLAGS = ("-c", str(2 * CONTEXT), "-np", "2", "-t", "1", "--metrics", "--jinja")


@pytest.fixture(scope="module", params=BACKENDS)
def server(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerManager]:
    saved = tmp_path_factory.mktemp("slots")
    with ServerManager(backend=choose_backend(request)) as running:
        extra = (*FLAGS, "--slot-save-path", f"{saved}/")
        running.start_server(tiny_model, port=0, api_key=KEY, alias="tiny", extra_args=extra)
        running.wait_until_ready(60)
        yield running


@pytest.fixture
def client(server: ServerManager) -> Iterator[LlamaCppClient]:
    with LlamaCppClient(server.base_url, api_key=KEY, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def vectors(tiny_model: Path) -> Iterator[LlamaCppClient]:
    with ServerManager(backend="xllamacpp") as running:
        running.start_server(
            tiny_model, port=0, alias="tiny", extra_args=("-c", "512", "-t", "1", "--embeddings", "--pooling", "mean")
        )
        running.wait_until_ready(60)
        with LlamaCppClient(running.base_url) as made:
            yield made


def until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextlib.contextmanager
def cancellation(server: ServerManager) -> Iterator[Callable[[], bool]]:
    """Yield a function: was a request cancelled? By the log, because polling /slots delays cancellation."""
    seen: list[Outcome] = []
    end = server.subscribe(lambda completion: seen.append(completion.outcome))
    yield lambda: Outcome.CANCELLED in seen
    end()


def idle(client: LlamaCppClient) -> bool:
    return not any(slot.is_processing for slot in client.slots.list())


# -- requests and results ----------------------------------------------------------------------------------------------


def test_client_chat(client: LlamaCppClient) -> None:
    answer = client.chat.completions.create(messages=HELLO, max_tokens=7, temperature=0.5, ignore_eos=True)
    assert answer.model == "tiny"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.timings is not None
    assert answer.usage.completion_tokens == answer.timings.predicted_n == 7
    assert answer.usage.prompt_tokens == (answer.timings.prompt_n or 0) + (answer.timings.cache_n or 0)
    assert answer.timings.prompt_ms is not None
    assert answer.timings.prompt_ms > 0
    assert answer.raw["choices"][0]["message"]["content"] == answer.choices[0].message.content


def test_client_chat_stream(client: LlamaCppClient) -> None:
    fixed: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "seed": 1, "ignore_eos": True}
    whole = client.chat.completions.create(HELLO, **fixed)
    with client.chat.completions.create(HELLO, stream=True, **fixed) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].timings == stream.timings
    assert stream.timings is not None
    assert stream.timings.predicted_n == 12


def test_client_stream_usage(client: LlamaCppClient) -> None:
    options = {"include_usage": True}
    *_, last = client.chat.completions.create(HELLO, stream=True, max_tokens=3, ignore_eos=True, stream_options=options)
    assert last.usage is not None
    assert last.usage.completion_tokens == 3


def test_client_completions(client: LlamaCppClient) -> None:
    own = client.complete("Once", n_predict=5, temperature=0, ignore_eos=True)
    assert own.usage is not None
    assert (own.usage.completion_tokens, own.stop_type, own.id_slot in (0, 1)) == (5, "limit", True)
    pieces = list(client.complete("Once", n_predict=5, temperature=0, ignore_eos=True, stream=True))
    assert "".join(piece.text for piece in pieces) == own.text
    assert pieces[-1].stop
    other = client.completions.create("Once", max_tokens=5, temperature=0, ignore_eos=True)
    assert other.choices[0].text == own.text
    streamed = client.completions.create("Once", max_tokens=5, temperature=0, ignore_eos=True, stream=True)
    assert "".join(piece.choices[0].text for piece in streamed if piece.choices) == own.text


def test_client_tokens_templates_state(client: LlamaCppClient, server: ServerManager) -> None:
    tokens = client.tokenize("hello there").tokens
    assert len(tokens) == len(client.tokenize("hello there")) > 3
    assert client.detokenize(tokens).content.strip() == "hello there"
    assert client.detokenize(client.tokenize("hello there")).content.strip() == "hello there"
    split = client.tokenize("hello there", with_pieces=True)
    assert split.tokens == tokens
    assert "".join(piece for piece in split.pieces if isinstance(piece, str)).strip() == "hello there"
    assert "Hello" in client.apply_template(HELLO).prompt
    assert client.health()
    assert client.health().status == "ok"
    assert (client.props().total_slots, client.props().n_ctx) == (2, CONTEXT)
    assert [model.id for model in client.models.list().data] == ["tiny"] == [model.id for model in client.models().data]
    assert [slot.id for slot in client.slots.list()] == [0, 1] == [slot.id for slot in client.slots()]
    assert client.metrics()["tokens_predicted_total"] >= 0
    assert client.lora.list() == ()
    assert client.lora.set({}) is True


def test_client_slot_actions(client: LlamaCppClient) -> None:
    client.complete("To be saved", n_predict=2, id_slot=0, cache_prompt=True)
    saved = client.slots.save(0, "slot.bin")
    assert saved.n_saved
    assert client.slots.erase(0).n_erased == saved.n_saved
    assert client.slots.restore(0, "slot.bin").n_restored == saved.n_saved
    with pytest.raises(UsageError, match="is a path"):
        client.slots.save(0, "../slot.bin")


def test_client_embeddings(vectors: LlamaCppClient) -> None:
    one = vectors.embeddings.create("a text")
    two = vectors.embeddings(["a text", "another"])
    assert len(one.data[0].embedding) == len(two.data[1].embedding) > 8
    assert [vector.index for vector in two.data] == [0, 1]
    assert one.usage is not None
    assert one.usage.prompt_tokens


def test_result_attributes() -> None:
    made = Result({"id": None, "new": 1, "choices": [{"index": 3}, 7], "usage": "none"})
    assert (made.raw["new"], made.new, made["new"], made.usage, made.id) == (1, 1, 1, "none", None)
    assert (made.choices[0].index, made.choices[1]) == (3, 7)
    assert made.timings is None  # llama.cpp sometimes omits it
    with pytest.raises(AttributeError, match="has no 'choise'; it has id, new, choices, usage"):
        _ = made.choise
    assert {"id", "new", "choices", "raw"} <= set(dir(made))
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made  # noqa: S301 - our own
    assert repr(made).startswith("Result({'id': None")


def test_event_lines_cut_anywhere() -> None:
    text = b'data: {"a":1}\n\n: comment\ndata: {"b":"\xc3\xa4"}\r\n\nerror: {"code":500}\n\ndata: [DONE]\n\n'
    whole = [b'{"a":1}', b'{"b":"\xc3\xa4"}', b'{"error":{"code":500}}', b"[DONE]"]
    assert list(EventLines().feed(text)) == whole
    lines = EventLines()
    assert [event for at in range(len(text)) for event in lines.feed(text[at : at + 1])] == whole


# -- cancellation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "drop", "block", "raise"])
def test_client_stream_left(client: LlamaCppClient, how: str) -> None:
    stream = client.complete("Long", n_predict=LONG, ignore_eos=True, stream=True)
    next(stream)
    assert not idle(client)
    if how == "close":
        stream.close()
        stream.close()
        assert list(stream) == []
    elif how == "block":
        with stream:
            pass
    elif how == "raise":
        with pytest.raises(KeyError), stream:
            raise KeyError
    else:
        del stream
        gc.collect()
    assert until(lambda: idle(client))


def test_client_stream_closed_by_another_thread(client: LlamaCppClient) -> None:
    stream = client.complete("Long", n_predict=LONG, ignore_eos=True, stream=True)
    next(stream)
    threading.Timer(0.1, stream.close).start()
    assert len(list(stream)) < LONG
    assert until(lambda: idle(client))


# -- errors -----------------------------------------------------------------------------------------------------------


def test_client_connection_refused() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(ConnectError, match=f"connection refused at {address}") as caught:
        LlamaCppClient(address, retries=1).health()
    assert time.monotonic() - start > 0.2
    assert (caught.value.kind, caught.value.status, caught.value.exit_code) == ("connection_refused", None, 1)


def test_client_api_key(server: ServerManager) -> None:
    client = LlamaCppClient(server.base_url, api_key="wrong-key")
    with pytest.raises(NotAuthorized, match="401") as caught:
        client.chat.completions.create(HELLO)
    shown = f"{client!r} {client} {caught.value} {caught.value!r}"
    assert "wrong-key" not in shown
    with pytest.raises(UsageError) as refused:
        LlamaCppClient(server.base_url, api_key="two\nlines")
    assert "lines" not in str(refused.value)


@pytest.mark.parametrize("streamed", [False, True])
def test_client_prompt_too_long(client: LlamaCppClient, streamed: bool) -> None:
    tokens = len(client.tokenize("again " * CONTEXT, add_special=True))
    with pytest.raises(ContextTooLong, match="exceeds the available context size") as caught:
        client.complete("again " * CONTEXT, stream=streamed)
    error = caught.value
    assert (error.status, error.kind) == (400, "exceed_context_size_error")
    assert (error.prompt_tokens, error.context_size) == (tokens, CONTEXT)
    assert error.excess == tokens - CONTEXT
    assert f"{error.excess} tokens too many" in str(error)


def test_client_not_supported(client: LlamaCppClient, vectors: LlamaCppClient) -> None:
    with pytest.raises(NotSupported, match="--embeddings"):
        client.embeddings.create("x")
    with pytest.raises(BadRequest, match="max_tokens"):
        client.chat.completions.create(HELLO, max_tokens="many")
    with pytest.raises(NotSupported) as caught:
        vectors.slots.save(0, "x")
    assert caught.value.status == 501


def test_client_timeout(server: ServerManager, client: LlamaCppClient) -> None:
    with cancellation(server) as cancelled:
        with pytest.raises(RequestTimeout, match=r"sent nothing for 0\.3 s") as caught:
            client.complete("Long", n_predict=LONG, ignore_eos=True, timeout=0.3)
        assert isinstance(caught.value, TimeoutError)
        assert until(cancelled)


def test_client_server_killed_in_stream(tiny_model: Path) -> None:
    with ServerManager(backend="xllamacpp") as running:
        running.start_server(tiny_model, port=0, extra_args=FLAGS).wait_until_ready(60)
        stream = LlamaCppClient(running.base_url).complete("Long", n_predict=LONG, ignore_eos=True, stream=True)
        next(stream)
        running.stop_server(0)
        with pytest.raises(ConnectError, match="broke in the middle of the response") as caught:
            list(stream)
        assert caught.value.kind == "broken_stream"
        assert list(stream) == []


def test_client_kept_connection_closed(tiny_model: Path) -> None:
    port = free_port()
    client = LlamaCppClient(f"http://127.0.0.1:{port}")
    for _ in range(2):
        with ServerManager(backend="xllamacpp") as running:
            running.start_server(tiny_model, port=port, extra_args=FLAGS).wait_until_ready(60)
            assert client.complete("x", n_predict=1).timings


class StandIn:
    """A stand-in for another program: sends one fixed response per connection."""

    def __init__(self, *answers: bytes) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.requests: list[bytes] = []
        threading.Thread(target=self._run, args=(answers,), daemon=True).start()

    def _run(self, answers: tuple[bytes, ...]) -> None:
        for answer in answers:
            connection, _ = self._socket.accept()
            with connection:
                self.requests.append(connection.recv(65536))
                connection.sendall(answer)
        self._socket.close()


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", InvalidResponse),
        (http(b"<html>hello</html>"), InvalidResponse),
        (http(b"[1, 2]"), InvalidResponse),
        (http(b"\xff\xfe"), InvalidResponse),
        (http(b'{"a": 1')[:-3], ConnectError),
        (b"", ConnectError),
        (http(b"<h1>Bad gateway</h1>", "502 Bad Gateway"), RequestError),
        (http(b'{"error": "plain"}', "400 Bad Request"), BadRequest),
    ],
)
def test_client_not_llama_cpp(answer: bytes, kind: type[RequestError]) -> None:
    with pytest.raises(kind) as caught:
        LlamaCppClient(StandIn(answer).url, retries=0, timeout=5).props()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"data: nonsense\n\n", InvalidResponse),
        (b"data: 7\n\n", InvalidResponse),
        (b"", InvalidResponse),
        (b'data: {"error":{"code":500,"message":"Compute error.","type":"server_error"}}\n\n', RequestError),
    ],
)
def test_client_stream_not_llama_cpp(body: bytes, kind: type[RequestError]) -> None:
    stream = LlamaCppClient(StandIn(http(body)).url, retries=0, timeout=5).complete("x", stream=True)
    with pytest.raises(kind):
        list(stream)
    assert list(stream) == []


def test_client_retries_while_loading() -> None:
    loading = http(
        b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}', "503 Service Unavailable"
    )
    stand_in = StandIn(loading, http(b'{"content": "now"}'), loading)
    assert LlamaCppClient(stand_in.url).complete("x").text == "now"
    with pytest.raises(ServerNotReady, match="Loading model"):
        LlamaCppClient(stand_in.url, retries=0).complete("x")
    assert len(stand_in.requests) == 3


def test_client_health_while_loading() -> None:
    loading = http(
        b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}', "503 Service Unavailable"
    )
    health = LlamaCppClient(StandIn(loading).url).health()
    assert not health
    assert health.status == "loading"


def test_client_base_url_path() -> None:
    for path, requests in (("", b""), ("/v1", b""), ("/v1/", b""), ("/llama", b"/llama"), ("/llama/v1", b"/llama")):
        stand_in = StandIn(http(b'{"content": "x"}'), http(b'{"choices": []}'))
        client = LlamaCppClient(stand_in.url + path, retries=0, timeout=5)
        client.complete("x")
        client.chat.completions.create(HELLO)
        lines = [request.split(b"\r\n")[0] for request in stand_in.requests]
        assert lines == [
            b"POST " + requests + b"/completion HTTP/1.1",
            b"POST " + requests + b"/v1/chat/completions HTTP/1.1",
        ]


@pytest.mark.parametrize("url", ["127.0.0.1:8090", "ftp://x", "http://", "http://u:p@h", "unix://", "http://h:x"])
def test_client_base_url_invalid(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        LlamaCppClient(url)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize("url", [None, 8090, ""])
def test_client_base_url_missing(url: Any) -> None:
    with pytest.raises(UsageError, match="is not a server address"):
        LlamaCppClient(url)


def test_client_invalid_arguments(client: LlamaCppClient) -> None:
    create: Any = client.chat.completions.create
    for messages in ("Hello", HELLO[0]):
        with pytest.raises(UsageError, match="messages is a list"):
            create(messages)
    rerank: Any = client.rerank
    with pytest.raises(UsageError, match="documents is a list"):
        rerank("query", "document")
    for timeout in (0, -1, "5", True, float("inf")):
        with pytest.raises(UsageError, match="seconds above 0"):
            client.health(timeout=timeout)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="seconds above 0"):
            LlamaCppClient(timeout=timeout)  # type: ignore[arg-type]


def test_client_closed(server: ServerManager) -> None:
    with LlamaCppClient(server.base_url, api_key=KEY) as plain:
        assert plain.health()
    with pytest.raises(UsageError, match="was closed"):
        plain.health()


def test_client_host_not_found() -> None:
    with pytest.raises(ConnectError, match=r"there is no host 'nowhere\.invalid'") as caught:
        LlamaCppClient("http://nowhere.invalid").health()
    assert caught.value.kind == "host_not_found"


def test_client_unix_socket(tiny_model: Path, llama_server_binary: Path, tmp_path: Path) -> None:
    path = tmp_path / "llama.sock"
    with ServerManager(backend=str(llama_server_binary)) as running:
        running.start_server(tiny_model, host=str(path), port=0, extra_args=FLAGS).wait_until_ready(60)
        with LlamaCppClient(f"unix://{path}") as client:
            assert client.complete("x", n_predict=2, ignore_eos=True).tokens_predicted == 2


def test_client_leaves_out_none() -> None:
    assert json.loads(_sent({"messages": HELLO, "max_tokens": None, "top_k": 0})) == {"messages": HELLO, "top_k": 0}
