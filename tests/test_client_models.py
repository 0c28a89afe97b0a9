"""Client features that need particular models: infill, LoRA adapters, reranking, tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llamatel.llama import LlamaCppClient, ServerManager
from llamatel.llama.client import client_call as calls
from llamatel.tracing.client_spans import ClientSpans
from llamatel.tracing.message_content import Wanted
from tests.recording import CallRecorder, Recording
from tests.servers import BACKENDS, choose_backend

FLAGS = ("-t", "1", "-c", "1024")
MIDDLE = {"pre": 270, "suf": 271, "mid": 272}
"""Tokens of the tiny model used as the infill markers prefix, suffix and middle."""

TEMPLATE = """
{%- if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer with <tool_call>
{"name": NAME, "arguments": ARGUMENTS}
</tool_call>
{% endif -%}
{%- for message in messages -%}
<|{{ message.role }}|>{{ message.content or "" }}
{%- if message.tool_calls %}{% for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}
{% endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}"""
"""A chat template with tools; llama.cpp derives a grammar from it."""


def write_adapter(path: Path) -> Path:
    """A LoRA adapter of rank 4 for the tiny model."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    random = np.random.default_rng(1)
    for block in range(2):
        for part, shape in (("a", (4, 64)), ("b", (128, 4))):
            weights = random.standard_normal(shape, dtype=np.float32)
            writer.add_tensor(f"blk.{block}.ffn_up.weight.lora_{part}", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module", params=BACKENDS)
def client(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaCppClient]:
    folder = tmp_path_factory.mktemp("client")
    adapter = write_adapter(folder / "adapter.gguf")
    template = folder / "tools.jinja"
    template.write_text(TEMPLATE)
    marks = ",".join(f"tokenizer.ggml.fim_{name}_token_id=int:{token}" for name, token in MIDDLE.items())
    with ServerManager(backend=choose_backend(request)) as server:
        extra = (
            *FLAGS,
            "--override-kv",
            marks,
            "--lora",
            str(adapter),
            "--jinja",
            "--chat-template-file",
            str(template),
        )
        server.start_server(tiny_model, port=0, extra_args=extra).wait_until_ready(60)
        with LlamaCppClient(server.base_url) as made:
            yield made


def test_client_infill(client: LlamaCppClient) -> None:
    answer = client.infill("def f(", "return x", n_predict=5, ignore_eos=True)
    assert (answer.tokens_predicted, answer.stop_type) == (5, "limit")
    texts = len(client.tokenize("def f(").tokens) + len(client.tokenize("return x").tokens)
    assert answer.tokens_evaluated is not None
    assert answer.tokens_evaluated >= texts + len(MIDDLE)
    with client.infill("def f(", "return x", n_predict=5, ignore_eos=True, seed=1, stream=True) as stream:
        assert len(list(stream)) > 1  # tokens that are parts of one character arrive together
    assert stream.timings is not None
    assert stream.timings.predicted_n == 5


def test_client_lora_scale(client: LlamaCppClient) -> None:
    def says() -> str:
        return str(client.complete("Hello", n_predict=16, temperature=0, ignore_eos=True, cache_prompt=False).text)

    [adapter] = client.lora.list()
    assert (adapter.id, adapter.scale) == (0, 1.0)
    assert adapter.path is not None
    assert adapter.path.endswith("adapter.gguf")
    with_it = says()
    assert client.lora.set({0: 0.0}) is True
    try:
        assert [each.scale for each in client.lora()] == [0.0]
        assert says() != with_it
    finally:
        client.lora.set({0: 1.0})
    assert says() == with_it


@pytest.mark.parametrize("streamed", [False, True])
def test_client_tool_call(client: LlamaCppClient, streamed: bool) -> None:
    """Random weights call no tool by themselves: the message is prefilled, and the grammar completes it."""
    city = {"type": "object", "properties": {"city": {"enum": ["Paris", "Oslo"]}}, "required": ["city"]}
    prefilled = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "<tool_call>\n"}]
    options: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": city}}], "tool_choice": "required",
        "max_tokens": 120, "temperature": 0, "logit_bias": [[" ", -20], ["\n", -20]],
    }  # fmt: skip
    recording = Recording()
    content = Wanted(on_spans=True)
    calls.listen(ClientSpans(recording.tracer, content=content))
    try:
        if streamed:
            chunks = list(client.chat.completions.create(prefilled, stream=True, **options))
            pieces = [piece for chunk in chunks if chunk.choices for piece in chunk.choices[0].delta.tool_calls or ()]
            first = [piece.function for piece in pieces if piece.index == 0 and piece.function is not None]
            name, arguments = first[0].name, "".join(piece.arguments or "" for piece in first)
        else:
            call = client.chat.completions.create(prefilled, **options).choices[0].message.tool_calls[0]
            assert call.id
            assert call.function is not None
            name, arguments = call.function.name, call.function.arguments or ""
    finally:
        calls.listen(None)
    assert name == "weather"
    assert json.loads(arguments)["city"] in ("Paris", "Oslo")
    found = next(dict(span.attributes or {}) for span in recording.spans if span.name == "chat")
    [answer] = json.loads(str(found["gen_ai.output.messages"]))
    [part, *_] = answer["parts"]
    assert (part["type"], part["name"], part["arguments"]) == ("tool_call", "weather", json.loads(arguments))
    [definition] = json.loads(str(found["gen_ai.tool.definitions"]))
    assert definition == {"type": "function", "name": "weather", "parameters": city}


def test_client_rerank_span(tiny_model: Path) -> None:
    recording, sink = Recording(), CallRecorder()
    calls.listen(ClientSpans(recording.tracer, sink))
    try:
        with ServerManager(backend="xllamacpp") as server:
            server.start_server(tiny_model, port=0, extra_args=(*FLAGS, "--reranking")).wait_until_ready(60)
            ranking = LlamaCppClient(server.base_url).rerank("what", ["a llama", "bb", "c"], top_n=2)
    finally:
        calls.listen(None)
    scores = [found.relevance_score for found in ranking.results]
    assert len(scores) == 2
    assert scores == sorted(scores, key=lambda score: -(score or 0))
    [span], [call] = recording.spans, sink.calls
    found = dict(span.attributes or {})
    assert (span.name, found["gen_ai.operation.name"], call.tasks) == ("rerank", "rerank", 3)
    assert ranking.usage is not None
    assert found["gen_ai.usage.input_tokens"] == ranking.usage.prompt_tokens
    assert "gen_ai.usage.output_tokens" not in found
