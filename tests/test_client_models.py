"""The client with what only some models can do: fill in the middle, LoRA adapters, reranking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from llamatel.client_spans import ClientSpans
from llamatel.llama import LlamaCppClient, ServerManager
from llamatel.llama.client import call as calls
from llamatel.records import ClientCall
from tests.recording import Recording
from tests.servers import BACKENDS, choose_backend

FLAGS = ("-t", "1", "-c", "1024")
MIDDLE = {"pre": 270, "suf": 271, "mid": 272}
"""Tokens of the tiny model that are told to mark what is before a gap, behind it, and in it."""


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
    adapter = write_adapter(tmp_path_factory.mktemp("lora") / "adapter.gguf")
    marks = ",".join(f"tokenizer.ggml.fim_{name}_token_id=int:{token}" for name, token in MIDDLE.items())
    with ServerManager(backend=choose_backend(request)) as server:
        extra = (*FLAGS, "--override-kv", marks, "--lora", str(adapter))
        server.start_server(tiny_model, port=0, extra_args=extra).wait_until_ready(60)
        with LlamaCppClient(server.base_url) as made:
            yield made


def test_the_middle_is_filled_in(client: LlamaCppClient) -> None:
    answer = client.infill("def f(", "return x", n_predict=5, ignore_eos=True)
    assert (answer.tokens_predicted, answer.stop_type) == (5, "limit")
    texts = len(client.tokenize("def f(").tokens) + len(client.tokenize("return x").tokens)
    assert answer.tokens_evaluated is not None
    assert answer.tokens_evaluated >= texts + len(MIDDLE)
    with client.infill("def f(", "return x", n_predict=5, ignore_eos=True, stream=True) as stream:
        assert len(list(stream)) >= 5
    assert stream.timings is not None
    assert stream.timings.predicted_n == 5


def test_an_adapter_weighs_what_it_is_told_to(client: LlamaCppClient) -> None:
    def says() -> str:
        return client.complete("Hello", n_predict=16, temperature=0, ignore_eos=True, cache_prompt=False).text

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


def test_documents_are_ranked_and_the_span_says_so(tiny_model: Path) -> None:
    recording, ended = Recording(), list[ClientCall]()
    calls.listen(ClientSpans(recording.tracer, began=lambda *_: None, ended=ended.append))
    try:
        with ServerManager(backend="xllamacpp") as server:
            server.start_server(tiny_model, port=0, extra_args=(*FLAGS, "--reranking")).wait_until_ready(60)
            ranking = LlamaCppClient(server.base_url).rerank("what", ["a llama", "bb", "c"], top_n=2)
    finally:
        calls.listen(None)
    scores = [found.relevance_score for found in ranking.results]
    assert len(scores) == 2
    assert scores == sorted(scores, key=lambda score: -(score or 0))
    [span], [call] = recording.spans, ended
    found = dict(span.attributes or {})
    assert (span.name, found["gen_ai.operation.name"], call.tasks) == ("rerank", "rerank", 3)
    assert ranking.usage is not None
    assert found["gen_ai.usage.input_tokens"] == ranking.usage.prompt_tokens
    assert "gen_ai.usage.output_tokens" not in found
