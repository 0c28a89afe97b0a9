"""Log injection: requests whose strings are llama.cpp's own log lines, or their JSON records.

Each vector is one field of one endpoint and forges its own task number, which identifies the ones that worked.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import urllib3

FIRST_TASK = 900_000
WORD = "A" * 65536


@dataclass(frozen=True)
class Vector:
    """One request; ``{}`` in its name, body and headers stands for the payload."""

    name: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    generates: bool = False
    """Whether a 200 means one completed request."""


def _completion(name: str, **fields: Any) -> Vector:
    return Vector(f"completion.{name}", "/completion", {"prompt": "a", "n_predict": 2, **fields}, generates=True)


def _chat(name: str, **fields: Any) -> Vector:
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, **fields}
    return Vector(f"chat.{name}", "/v1/chat/completions", body, generates=True)


def _header(name: str, value: str) -> Vector:
    return Vector(f"header.{name}", "/completion", {"prompt": "a", "n_predict": 2}, {name: value}, generates=True)


_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def _tool(**changes: Any) -> dict[str, Any]:
    return {"type": "function", "function": {**_TOOL["function"], **changes}}  # type: ignore[dict-item]


_MULTIPART = (
    '--b\r\nContent-Disposition: form-data; name="file"; filename="{}"\r\nContent-Type: {}\r\n\r\n{}\r\n'
    '--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{}\r\n'
    '--b\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n--b--\r\n'
)

VECTORS = (
    _completion("prompt", prompt="{}"),
    _completion("grammar", grammar="root ::=\n{}"),
    _completion("grammar_closed", grammar="root ::=\n0.00.000.001 E failed to parse grammar\n{}"),
    _completion("grammar_lark", grammar="%llguidance {{}}\nstart: /[/\n{}"),
    _completion("schema_type", json_schema={"type": "{}"}),
    _completion("schema_pattern", json_schema={"type": "string", "pattern": "^(?<x>\n{}\\b"}),
    _completion(
        "schema_pattern_closed", json_schema={"type": "string", "pattern": "^(?<x>\n, accepting any string\n{}\\b"}
    ),
    _completion("schema_ref", json_schema={"$ref": "{}"}),
    _completion("schema_format", json_schema={"type": "string", "format": "{}"}),
    _completion("schema_property", json_schema={"type": "object", "properties": {"{}": {"type": "string"}}}),
    _completion("schema_type_closed", json_schema={"type": "\n\n{}"}),
    _completion("schema_ref_closed", json_schema={"$ref": "\n\n{}"}),
    _completion("schema_format_closed", json_schema={"type": "string", "format": "\n\n{}"}),
    _completion("grammar_lark_closed", grammar="%llguidance {{}}\nstart: /[/\n\n{}"),
    _completion("samplers", samplers=["top_k", "{}"]),
    _completion("samplers_closed", samplers=["x'\n{}"]),
    _completion("stop", stop=["{}"]),
    _completion("logit_bias", logit_bias=[["{}", 1.0]]),
    _completion("lora", lora=[{"id": "{}", "scale": 1.0}]),
    _completion("id_slot", id_slot="{}"),
    _completion("n_predict", n_predict="{}"),
    _completion("response_fields", response_fields=["{}"]),
    _completion("image_data", image_data=[{"data": "{}", "id": 1}]),
    _completion("dry_sequence_breakers", dry_sequence_breakers=["{}"]),
    _completion("preserved_tokens", preserved_tokens=["{}"]),
    _completion("model", model="{}"),
    _completion("unknown_field", **{"{}": "{}"}),
    _chat("content", messages=[{"role": "user", "content": "{}"}]),
    _chat("role", messages=[{"role": "{}", "content": "a"}]),
    _chat("content_type", messages=[{"role": "user", "content": [{"type": "{}", "text": "a"}]}]),
    _chat("image_url", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "{}"}}]}]),
    _chat("tool_name", tools=[_tool(name="{}")]),
    _chat("tool_description", tools=[_tool(description="{}")]),
    _chat("tool_parameters", tools=[_tool(parameters={"type": "object", "properties": {"x": {"type": "{}"}}})]),
    _chat("tool_pattern", tools=[_tool(parameters={"type": "string", "pattern": "^(?<x>\n{}\\b"})]),
    _chat("tool_choice", tool_choice="{}", tools=[_TOOL]),
    _chat("response_format", response_format={"type": "{}"}),
    _chat("response_schema", response_format={"type": "json_schema", "json_schema": {"schema": {"type": "{}"}}}),
    _chat("chat_template_kwargs", chat_template_kwargs={"{}": "{}"}),
    _chat("reasoning_format", reasoning_format="{}"),
    _chat("user", user="{}"),
    _chat("stop", stop="{}"),
    Vector("v1_completions.prompt", "/v1/completions", {"prompt": "{}", "max_tokens": 2}, generates=True),
    Vector("v1_completions.type", "/v1/completions", {"prompt": {"{}": 1}, "max_tokens": 2}),
    Vector("responses.input", "/v1/responses", {"input": "{}", "max_output_tokens": 2}, generates=True),
    Vector("responses.tool_type", "/v1/responses", {"input": "a", "max_output_tokens": 2, "tools": [{"type": "{}"}]}),
    Vector("responses.tool_type_closed", "/v1/responses",
           {"input": "a", "max_output_tokens": 2, "tools": [{"type": "x' skipped\n{}"}]}),
    Vector("messages.system", "/v1/messages", {"max_tokens": 2, "system": [{"type": "text", "text": "{}"}]}),
    Vector("infill.filename", "/infill", {"input_prefix": "a", "input_suffix": "b", "n_predict": 2,
           "input_extra": [{"filename": "{}", "text": "{}"}]}),
    Vector("embeddings.input", "/v1/embeddings", {"input": "{}"}),
    Vector("rerank.query", "/v1/rerank", {"query": "{}", "documents": ["{}"]}),
    Vector("tokenize.content", "/tokenize", {"content": "{}"}),
    Vector("detokenize.tokens", "/detokenize", {"tokens": ["{}"]}),
    Vector("apply_template.role", "/apply-template", {"messages": [{"role": "{}", "content": "{}"}]}),
    Vector("lora_adapters.id", "/lora-adapters", [{"id": "{}", "scale": "{}"}]),
    Vector("slots.filename", "/slots/0?action=save", {"filename": "{}"}),
    Vector("slots.action", "/slots/0?action={url}", {}),
    Vector("props.key", "/props", {"{}": "{}"}),
    Vector("metrics.model", "/metrics?model={url}", method="GET"),
    Vector("path", "/{url}", method="GET"),
    _header("User-Agent", "{line}"),
    _header("Authorization", "Bearer {line}"),
    _header("Origin", "{line}"),
    *(_header(name, "{line}") for name in (
        "X-Request-Id", "X-Forwarded-For", "traceparent", "tracestate", "Cookie", "Accept-Language", "X-Api-Key",
    )),
    Vector("body.broken", "/completion", "{{\n{}"),
    _completion("schema_enum", json_schema={"enum": ["{}"]}),
    _completion("schema_const", json_schema={"const": "{}"}),
    _completion("schema_any_of", json_schema={"anyOf": [{"$ref": "#/$defs/{}"}], "$defs": {"{}": {"type": "{}"}}}),
    _completion("schema_required", json_schema={"type": "object", "required": ["{}"]}),
    _completion("schema_length", json_schema={"type": "string", "minLength": "{}"}),
    _completion("schema_description", json_schema={"type": "integer", "description": "{}", "title": "{}"}),
    _completion("grammar_trigger", grammar='root ::= "a"', grammar_lazy=True,
                grammar_triggers=[{"type": 1, "value": "{}"}]),
    _completion("grammar_rule_name", grammar="root ::= {}"),
    _completion("speculative", **{"speculative.type": "{}", "speculative.n_max": "{}"}),
    _completion("cache_prompt", cache_prompt="{}"),
    _completion("temperature", temperature="{}"),
    _completion("prompt_list", prompt=["{}", 1]),
    _completion("prompt_object", prompt={"prompt_string": "{}", "multimodal_data": ["{}"]}),
    _chat("message_name", messages=[{"role": "user", "name": "{}", "content": "a"}]),
    _chat("tool_calls", messages=[{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [
        {"id": "{}", "type": "function", "function": {"name": "{}", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "{}", "content": "{}"}]),
    _chat("tool_type", tools=[{"type": "{}", "function": {"name": "f"}}]),
    _chat("tool_choice_name", tools=[_TOOL], tool_choice={"type": "function", "function": {"name": "{}"}}),
    _chat("input_audio", messages=[{"role": "user", "content": [
        {"type": "input_audio", "input_audio": {"data": "{}", "format": "{}"}}]}]),
    _chat("image_data_url", messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,{}"}}]}]),
    _chat("schema_name", response_format={"type": "json_schema", "json_schema": {"name": "{}", "schema": True}}),
    _chat("grammar", grammar="{}"),
    _chat("reasoning_effort", reasoning_effort="{}"),
    _chat("stream_options", stream=True, stream_options={"include_usage": "{}"}),
    _chat("logprobs", logprobs="{}", top_logprobs="{}"),
    Vector("input_tokens.content", "/v1/chat/completions/input_tokens",
           {"messages": [{"role": "{}", "content": "{}"}]}),
    Vector("responses.instructions", "/v1/responses",
           {"input": "a", "max_output_tokens": 2, "instructions": "{}"}, generates=True),
    Vector("responses.input_role", "/v1/responses",
           {"max_output_tokens": 2, "input": [{"role": "{}", "type": "{}", "content": "{}"}]}),
    Vector("responses.format", "/v1/responses",
           {"input": "a", "max_output_tokens": 2, "text": {"format": {"type": "{}", "name": "{}"}}}),
    Vector("responses.previous", "/v1/responses", {"input": "a", "max_output_tokens": 2, "previous_response_id": "{}"}),
    Vector("messages.content", "/v1/messages",
           {"max_tokens": 2, "messages": [{"role": "user", "content": "{}"}], "metadata": {"user_id": "{}"}},
           generates=True),
    Vector("messages.content_type", "/v1/messages",
           {"max_tokens": 2, "messages": [{"role": "{}", "content": [{"type": "{}", "text": "{}"}]}]}),
    Vector("messages.tool", "/v1/messages",
           {"max_tokens": 2, "messages": [{"role": "user", "content": "a"}],
            "tools": [{"name": "{}", "description": "{}", "input_schema": {"type": "{}"}}],
            "tool_choice": {"type": "{}"}}),
    Vector("messages.image", "/v1/messages", {"max_tokens": 2, "messages": [{"role": "user", "content": [
           {"type": "image", "source": {"type": "base64", "media_type": "{}", "data": "{}"}}]}]}),
    Vector("messages.stop_sequences", "/v1/messages",
           {"max_tokens": 2, "messages": [{"role": "user", "content": "a"}], "stop_sequences": ["{}"]}, generates=True),
    Vector("count_tokens.content", "/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "{}"}]}),
    Vector("infill.prefix", "/infill", {"input_prefix": "{}", "input_suffix": "{}", "prompt": "{}", "n_predict": 2}),
    Vector("embeddings.format", "/v1/embeddings", {"input": "a", "encoding_format": "{}"}),
    Vector("embedding.content", "/embedding", {"content": ["{}"]}),
    Vector("rerank.top_n", "/rerank", {"query": "a", "documents": [{"text": "{}"}], "top_n": "{}"}),
    Vector("apply_template.kwargs", "/apply-template",
           {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"{}": "{}"}, "tools": [_TOOL]}),
    Vector("lora_adapters.path", "/lora-adapters", [{"id": 0, "path": "{}", "scale": 1.0}]),
    Vector("models.load", "/models/load", {"model": "{}"}),
    Vector("models.unload", "/models/unload", {"model": "{}"}),
    Vector("api_show.model", "/api/show", {"model": "{}", "name": "{}"}),
    Vector("api_chat.content", "/api/chat",
           {"model": "{}", "messages": [{"role": "user", "content": "{}"}], "options": {"num_predict": 2}}),
    Vector("cors_proxy.url", "/cors-proxy?url={url}", method="GET"),
    Vector("slots.model", "/slots?model={url}&fail_on_no_slot={url}", method="GET"),
    *(Vector(f"multipart.{name}", path, _MULTIPART, {"Content-Type": "multipart/form-data; boundary=b"})
      for name, path in (("audio", "/v1/audio/transcriptions"), ("completion", "/completion"))),
    Vector("content_type", "/completion", "{}", {"Content-Type": "text/{line}"}),
)  # fmt: skip

RAW = {
    "method": "{} / HTTP/1.1\r\nHost: a\r\n\r\n",
    "request_line": "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
    "version": "GET / {}\r\nHost: a\r\n\r\n",
    "host": "GET /nowhere HTTP/1.1\r\nHost: {}\r\n\r\n",
    "header_with_line_end": "GET /nowhere HTTP/1.1\r\nHost: a\r\nX-Request-Id: a{}\r\n\r\n",
    "header_name": "GET /nowhere HTTP/1.1\r\nHost: a\r\n{}: a\r\n\r\n",
    "chunk": "POST /completion HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;{}\r\n{{}}\r\n0\r\n\r\n",
    "length": "POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
    "escaped_path": "GET /%0a{quoted} HTTP/1.1\r\nHost: a\r\n\r\n",
    "websocket": "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: {}\r\nConnection: upgrade\r\n\r\n",
}
"""Requests that no HTTP library sends."""


_ROWS = [json.loads(line) for line in Path(__file__).with_name("injection_more.jsonl").read_text().splitlines()]
MORE_VECTORS = tuple(Vector(**row) for row in _ROWS if "name" in row)
MORE_RAW = {row["raw"]: row["text"] for row in _ROWS if "raw" in row}
"""For ``make acceptance ARGS=injection``; ``{gram}`` stands for the payload as a literal of a grammar."""


def payload(task: int, *, records: bool, stamp: str = "0.00.000.001") -> str:
    """Forged log of a request, a router with a model and a sleeping server: lines, or records of ``--log-jsonl``."""
    messages = [
        f"slot launch_slot_: id  0 | task {task} | processing task, is_child = 0",
        f"slot print_timing: id  0 | task {task} | prompt eval time =       1.00 ms /    10 tokens (    0.10 ms",
        f"slot print_timing: id  0 | task {task} |        eval time =       1.00 ms /    10 tokens (    0.10 ms",
        f"slot      release: id  0 | task {task} | stop processing: n_tokens = 19, truncated = 0",
        "srv    load_model: initializing, n_slots = 64, n_ctx_slot = 64, kv_unified = 'true'",
        "srv  llama_server: starting server in router mode. models will be automatically loaded on-demand",
        f"srv          load: spawning server instance with name=forged{task} on port 1234",
        "que    start_loop: entering sleeping state",
        "srv  llama_server: listening on unix:///tmp/forged",
    ]
    if not records:
        return "\n" + "".join(f"{stamp} I {message}\n" for message in messages)
    rows = ({"type": "log", "time": 1, "level": "info", "msg": message + "\n"} for message in messages)
    return "\n" + "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def filled(value: Any, text: str) -> Any:
    """``value`` with ``text`` for each ``{}``."""
    if isinstance(value, str):
        marked = value.replace("{gram}", "\2").replace("{{}}", "\0").replace("{{", "\1").replace("{}", text)
        return marked.replace("\0", "{}").replace("\1", "{").replace("\2", json.dumps(text)[1:-1])
    if isinstance(value, dict):
        return {filled(key, text): filled(each, text) for key, each in value.items()}
    return [filled(each, text) for each in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Attempt:
    """The result of a vector."""

    vector: Vector
    task: int
    status: int


def attack(
    url: str, texts: Iterator[str] | None = None, *, first_task: int = FIRST_TASK, more: bool = False
) -> list[Attempt]:
    """Send every vector with lines and with records (or with each of ``texts``); ``more``: further vectors, too."""
    vectors = (*VECTORS, *MORE_VECTORS) if more else VECTORS
    raw = {**RAW, **MORE_RAW} if more else RAW
    attempts: list[Attempt] = []
    pool = urllib3.PoolManager(retries=False, timeout=60)
    kinds = [None, None] if texts is None else list(texts)
    for kind, given in enumerate(kinds):
        for vector in vectors:
            task = first_task + len(attempts)
            text = payload(task, records=bool(kind)) if given is None else given
            line = re.sub(r"[^ -~]", " ", text)[:4000]
            quoted = urllib3.util.parse_url("/" + line[:2000]).path or "/"
            headers = {name: value.replace("{line}", line) for name, value in vector.headers.items()}
            body = None if vector.body is None else filled(vector.body, text)
            data = body.encode() if isinstance(body, str) else None if body is None else json.dumps(body)
            status = 0
            with contextlib.suppress(urllib3.exceptions.HTTPError):  # the server closed the connection
                status = pool.request(
                    vector.method, url + vector.path.replace("{url}", quoted.strip("/")), body=data,
                    headers={"Content-Type": "application/json", **headers},
                ).status  # fmt: skip
            attempts.append(Attempt(vector, task, status))
        for name, form in raw.items():
            task = first_task + len(attempts)
            text = payload(task, records=bool(kind)) if given is None else given
            attempts.append(Attempt(Vector(f"raw.{name}", ""), task, _send(url, form, text)))
    return attempts


def _send(url: str, form: str, text: str) -> int:
    """Send bytes that are not quite HTTP; return the status of the response, 0 where there is none."""
    where = urllib3.util.parse_url(url)
    data = (
        form.replace("{quoted}", quote(text[:2000]))
        .replace("{{}}", "\0")
        .replace("{}", text[:60_000])
        .replace("\0", "{}")
        .encode()
    )
    with socket.create_connection((where.host or "", where.port or 80), timeout=10) as connection:
        connection.settimeout(0.3)
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            found = re.match(rb"HTTP/1\.\d (\d{3})", connection.recv(100))
        except OSError:
            return 0
    return int(found[1]) if found is not None else 0
