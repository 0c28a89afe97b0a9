"""Captured attention compared with attention recomputed from queries and keys, and from the weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llamatel.explore import Capture
from tests.explored import TEXT, Floats, captured, recomputed, softmax, write_strong

pytestmark = pytest.mark.usefixtures("llama_cpp")

CLOSE = 1e-4
PLAIN = ("llama", "llama:mqa", "qwen2", "qwen3", "gemma3:no-window", "phi3", "deepseek2", "deepseek2:full-heads")


def tensor(path: Path, name: str) -> Floats:
    [found] = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name]
    return np.array(found.data, np.float32)


def causal(tokens: int, window: int | None = None) -> Any:
    distance = np.subtract.outer(np.arange(tokens), np.arange(tokens))
    return (distance >= 0) & (distance < (window or tokens))


def is_attention(run: Capture) -> None:
    """Softmax of each row over the unmasked positions."""
    for layer in run.layers.values():
        assert not layer.weights[:, ~layer.visible].any()
        assert np.all(layer.weights >= 0)
        whole = layer.weights.sum(-1)
        assert np.all(whole < 1 + CLOSE)
        if not layer.sinks:
            assert np.all(whole > 1 - CLOSE)


@pytest.mark.parametrize("name", PLAIN)
def test_attention_equals_captured_queries_and_keys(name: str, tmp_path: Path) -> None:
    run = captured(write_strong(tmp_path, name))
    assert sorted(run.layers) == [0, 1, 2, 3, *range(4, len(run.layers))]
    assert not run.missing
    is_attention(run)
    for layer in run.layers.values():
        assert np.array_equal(layer.visible, causal(len(TEXT)))
        assert np.abs(recomputed(layer) - layer.weights).max() < CLOSE
        assert (
            layer.weights.std(axis=(1, 2)).min() > 0.05
        )  # heads with a clear maximum; otherwise any result would be close


def test_attention_heads_read_keys_of_their_group(tmp_path: Path) -> None:
    run = captured(write_strong(tmp_path, "llama"))
    for layer in run.layers.values():
        assert (layer.heads_in_all, layer.kv_heads, layer.group_size) == (4, 2, 2)
        assert [layer.kv_head(head) for head in layer.heads] == [0, 0, 1, 1]
        other = np.repeat(layer.keys[::-1], 2, 0)
        assert np.abs(recomputed(layer, keys=other) - layer.weights).max() > 0.1


def test_attention_latent_one_key_for_all_heads(tmp_path: Path) -> None:
    run = captured(write_strong(tmp_path, "deepseek2"))
    layer = run.layer(0)
    assert layer.latent
    assert (layer.kv_heads, layer.keys.shape[2], layer.values.shape[2]) == (1, 96, 64)


@pytest.mark.parametrize("name", ["gemma3", "gemma2:window"])
def test_attention_sliding_window(name: str, tmp_path: Path) -> None:
    run = captured(write_strong(tmp_path, name, attention__sliding_window=8))
    is_attention(run)
    seen = [bool(np.array_equal(layer.visible, causal(len(TEXT), 8))) for layer in run.layers.values()]
    every = [bool(np.array_equal(layer.visible, causal(len(TEXT)))) for layer in run.layers.values()]
    pattern = 6 if name == "gemma3" else 2
    assert seen == [(index + 1) % pattern != 0 for index in run.layers]
    assert every == [not windowed for windowed in seen]


def test_attention_score_cap(tmp_path: Path) -> None:
    run = captured(write_strong(tmp_path, "gemma2", attn_logit_softcapping=3.0))
    for layer in run.layers.values():
        assert layer.softcapped
        assert np.abs(recomputed(layer, softcap=3.0) - layer.weights).max() < CLOSE
        assert np.abs(recomputed(layer) - layer.weights).max() > 10 * CLOSE


def test_attention_sinks(tmp_path: Path) -> None:
    path = write_strong(tmp_path, "gpt-oss", attention__sliding_window=8)
    run = captured(path)
    is_attention(run)
    for index, layer in run.layers.items():
        assert layer.sinks
        sinks = tensor(path, f"blk.{index}.attn_sinks.weight")
        assert np.abs(recomputed(layer, sinks=sinks) - layer.weights).max() < CLOSE
        assert layer.weights.sum(-1).min() < 0.99
    assert [layer.visible.all(where=causal(len(TEXT))) for layer in run.layers.values()] == [False, True] * 2


@pytest.mark.parametrize("name", ["mamba", "jamba", "falcon-h1", "rwkv7"])
def test_attention_recurrent_layers_have_no_map(name: str, tmp_path: Path) -> None:
    run = captured(write_strong(tmp_path, name))
    attending = {"mamba": 0, "rwkv7": 0, "falcon-h1": 4}.get(name)
    assert len(run.layers) + len(run.missing) >= 4
    assert attending is None or len(run.layers) == attending
    assert name == "falcon-h1" or all("recurrent" in why for why in run.missing.values())
    if name == "jamba":
        assert run.layers
        assert run.missing


def forward(path: Path, tokens: tuple[int, ...]) -> list[Floats]:
    """The attention weights of a llama, from its file alone: numpy, no llama.cpp."""
    reader = gguf.GGUFReader(path)
    weights = {each.name: np.array(each.data, np.float32) for each in reader.tensors}

    def number(key: str) -> float:
        return float(reader.fields[f"llama.{key}"].parts[-1][0])

    heads, kv_heads = int(number("attention.head_count")), int(number("attention.head_count_kv"))
    epsilon = number("attention.layer_norm_rms_epsilon")

    def norm(x: Any, name: str) -> Any:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weights[f"{name}.weight"]

    def rope(x: Any) -> Any:
        length = x.shape[-1]
        angles = np.outer(np.arange(len(tokens)), 10000.0 ** (-np.arange(0, length, 2) / length))
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
        return np.stack((turned.real, turned.imag), -1).reshape(x.shape)

    def split(x: Any, count: int) -> Any:
        return x.reshape(len(tokens), count, -1).transpose(1, 0, 2)

    x = weights["token_embd.weight"][list(tokens)]
    maps = []
    for block in range(int(number("block_count"))):

        def project(x: Any, name: str, block: int = block) -> Any:
            return x @ weights[f"blk.{block}.{name}.weight"].T

        normed = norm(x, f"blk.{block}.attn_norm")
        queries = rope(split(project(normed, "attn_q"), heads))
        keys = np.repeat(rope(split(project(normed, "attn_k"), kv_heads)), heads // kv_heads, 0)
        values = np.repeat(split(project(normed, "attn_v"), kv_heads), heads // kv_heads, 0)
        scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(queries.shape[-1])
        maps.append(softmax(np.where(causal(len(tokens)), scores, -np.inf)))
        x = x + project((maps[-1] @ values).transpose(1, 0, 2).reshape(len(tokens), -1), "attn_output")
        normed = norm(x, f"blk.{block}.ffn_norm")
        gate = project(normed, "ffn_gate")
        x = x + project(gate / (1 + np.exp(-gate)) * project(normed, "ffn_up"), "ffn_down")
    return maps


def test_attention_equals_llama_computed_from_file(tmp_path: Path) -> None:
    path = write_strong(tmp_path, "llama")
    run = captured(path)
    expected = forward(path, TEXT)
    assert len(expected) == len(run.layers) == 4
    for layer, weights in zip(run.layers.values(), expected, strict=True):
        assert np.abs(layer.weights - weights).max() < CLOSE


def test_attention_earlier_rows_do_not_change(tmp_path: Path) -> None:
    path = write_strong(tmp_path, "llama")
    whole, part = captured(path), captured(path, tokens=TEXT[:16])
    grown = captured(path, tokens=TEXT[:16], generate=4)
    for index in range(4):
        early = part.layer(index)
        for later in (whole.layer(index), grown.layer(index)):
            assert np.abs(later.weights[:, :16, :16] - early.weights).max() < CLOSE
            assert not later.weights[:, :16, 16:].any()
            assert np.abs(later.keys[:, :16] - early.keys).max() < 1e-3
    assert grown.layer(0).weights.shape == (4, 20, 20)
    again = captured(path, tokens=grown.token_ids)
    assert np.abs(again.layer(3).weights - grown.layer(3).weights).max() < CLOSE
