"""``trace_client``: calls of httpx and requests to llama.cpp, joined with the server's requests."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
import requests

import llamatel
from llamatel import runtime
from llamatel.errors import UsageError
from llamatel.llama import ServerManager
from llamatel.telemetry.kept_spans import KeptSpan
from tests.servers import LONG

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6}


def use_requests(url: str, body: dict[str, Any], streamed: bool) -> None:
    with llamatel.trace_client(requests.Session()) as session:
        session.get(f"{url}/v1/models", timeout=5)
        response = session.post(f"{url}/v1/chat/completions", json=body, stream=streamed, timeout=30)
        lines = [line for line in response.iter_lines(decode_unicode=True) if line]
        assert ("timings" in lines[-2]) if streamed else response.json()["timings"]


def use_httpx(url: str, body: dict[str, Any], streamed: bool) -> None:
    with llamatel.trace_client(httpx2.Client(base_url=url)) as client:
        client.get("/v1/models")
        if not streamed:
            assert client.post("/v1/chat/completions", json=body).json()["timings"]
            return
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert "timings" in [line for line in response.iter_lines() if line][-2]


def use_httpx_raw(url: str, body: dict[str, Any], streamed: bool) -> None:
    with llamatel.trace_client(httpx2.Client(base_url=url)) as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert b"timings" in b"".join(response.iter_raw())


def use_async_httpx(url: str, body: dict[str, Any], streamed: bool) -> None:
    async def main() -> None:
        async with llamatel.trace_client(httpx2.AsyncClient(base_url=url)) as client:
            if not streamed:
                assert (await client.post("/v1/chat/completions", json=body)).json()["timings"]
                return
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                assert "timings" in [line async for line in response.aiter_lines() if line][-2]

    asyncio.run(main())


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("use", [use_requests, use_httpx, use_httpx_raw, use_async_httpx])
def test_traced_client_call_is_joined(
    telemetry: runtime.Runtime, chat_server: ServerManager, use: Any, streamed: bool
) -> None:
    with llamatel.span("task"):
        use(chat_server.base_url, {**BODY, "stream": streamed}, streamed)
    spans = llamatel.last_trace().spans
    [call] = [span for span in spans if span.kind == "CLIENT"]
    [request] = [span for span in spans if span.kind == "SERVER"]
    assert (call.name, request.parent_id) == ("chat m", call.span_id)
    assert call.attributes["gen_ai.usage.output_tokens"] == 6
    assert [span.name for span in spans].count("decode") == 1


def test_traced_client_failed_call(telemetry: runtime.Runtime, chat_server: ServerManager) -> None:
    session = llamatel.trace_client(requests.Session())
    with llamatel.span("task"):
        wrong = {**BODY, "messages": [{"role": "user", "content": "again " * 9000}]}
        assert session.post(f"{chat_server.base_url}/v1/chat/completions", json=wrong, timeout=30).status_code == 400
    [call] = _calls()
    assert call.failed
    assert call.attributes["error.type"] == "exceed_context_size_error"
    assert call.attributes["http.response.status_code"] == 400


def test_traced_client_stream_left(telemetry: runtime.Runtime, chat_server: ServerManager) -> None:
    session = llamatel.trace_client(requests.Session())
    with llamatel.span("task"):
        long = {**BODY, "stream": True, "max_tokens": LONG, "ignore_eos": True}
        with session.post(
            f"{chat_server.base_url}/v1/chat/completions", json=long, stream=True, timeout=30
        ) as response:
            next(response.iter_lines())
    [call] = _calls()
    assert call.attributes["llamacpp.outcome"] == "cancelled"


def test_traced_client_refuses_other_types() -> None:
    with pytest.raises(UsageError, match=r"is not a requests\.Session"):
        llamatel.trace_client(object())


def _calls() -> list[KeptSpan]:
    return [span for span in llamatel.last_trace().spans if span.kind == "CLIENT"]
