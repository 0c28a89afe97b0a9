"""Properties of the GGUF reader for any bytes."""

from __future__ import annotations

import json
import random

from llamatel.errors import GGUFError, LlamatelError
from llamatel.flags.server_settings import ServerSettings
from llamatel.gguf.header import GGUFHeader, read_header
from llamatel.gguf.metadata import SkippedArray
from llamatel.plan.architectures import ARCHITECTURES
from llamatel.plan.devices import parse_devices
from llamatel.plan.model_report import report_of
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.plan_report import make_report
from llamatel.ui.view.html import model_html
from llamatel.ui.view.model_page import layers_text, model_text
from llamatel.ui.view.plan_page import plan_text
from tests.bytes_source import BytesSource
from tests.fuzz.target import Broken
from tests.gguf_files import ARRAY, STRING, U32, Writer

DEVICES = parse_devices("t4x2")
_NAMES = [
    "attention.causal",
    "attention.compress_ratios",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.indexer.key_length",
    "attention.indexer.kpool",
    "attention.indexer.top_k",
    "attention.indexer.types",
    "attention.key_length",
    "attention.key_length_mla",
    "attention.key_length_swa",
    "attention.kv_lora_rank",
    "attention.recurrent_layers",
    "attention.shared_kv_layers",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "attention.value_length_mla",
    "attention.value_length_swa",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_used_count",
    "feed_forward_length",
    "full_attention_interval",
    "hyper_connection.count",
    "kda.head_dim",
    "leading_dense_block_count",
    "nextn_predict_layers",
    "num_loops",
    "ple.conv_kernel",
    "ple.layers",
    "ple.ngram_size",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.factor",
    "rope.scaling.type",
    "shortconv.l_cache",
    "ssm.conv_kernel",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "token_shift_count",
    "vocab_size",
    "wkv.head_size",
]
_NUMBERS = (0, 1, 2, 3, 4, 8, 64, 128, 511, 512, 513, 1 << 20, (1 << 32) - 1)
_TENSORS = ("token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.3.nextn.eh_proj.weight", "blk.511.x", "")


def structured(dice: random.Random, _: object = None) -> bytes:
    """A header with a model's keys and values that no converter writes."""
    write = Writer()
    architecture = dice.choice((*ARCHITECTURES, "clip", "neverheard"))
    keys = {"general.architecture": write.key("general.architecture", STRING, architecture)}
    plain = {"block_count": 4, "embedding_length": 64, "attention.head_count": 4, "context_length": 4096}
    for name, value in plain.items():
        keys[name] = write.key(f"{architecture}.{name}", U32, value)
    for name in dice.sample(_NAMES, dice.randrange(16)):
        full = f"{architecture}.{name}"
        kind = dice.randrange(7)
        if kind < 3:
            keys[name] = write.key(full, U32, dice.choice(_NUMBERS))
        elif kind == 3:
            keys[name] = write.key(full, 6, dice.choice((0.0, -1.5, 3e38, float("inf"), float("nan"))))
        elif kind == 4:
            values = tuple(dice.choice(_NUMBERS) for _ in range(dice.choice((0, 1, 4, 5, 600))))
            keys[name] = write.key(full, ARRAY, (U32, values))
        elif kind == 5:
            keys[name] = write.key(full, STRING, dice.choice(("", "yarn", "x" * 300)))
        else:
            keys[name] = write.key(full, 7, dice.random() < 0.5)
    tensors = [
        write.tensor(name, (256, dice.choice((0, 1, 3, 1 << 40))), dice.choice((0, 12, 36, 156, 337)), 0)
        for name in dice.sample(_TENSORS, dice.randrange(4))
    ]
    return write.file(list(keys.values()), tensors, data=64)


def _read(data: bytes, *, arrays: bool) -> GGUFHeader | GGUFError:
    try:
        return read_header(BytesSource(data, "fuzz"), read_tensors=True, read_arrays=arrays)
    except GGUFError as error:
        if error.offset is None or not 0 <= error.offset <= len(data) or not error.reading:
            raise Broken(f"the error does not say where: {error}") from error
        if "\n" in str(error):
            raise Broken(f"not one line: {error!r}") from error
        return error


def check(data: bytes) -> bool:
    """Raise unless ``data`` is read with equal results in both modes, or refused; True if it was read."""
    short, full = _read(data, arrays=False), _read(data, arrays=True)
    if isinstance(full, GGUFHeader):
        if not isinstance(short, GGUFHeader):
            raise Broken(f"refused only when arrays are skipped: {short}")
        _same(short, full)
    elif isinstance(short, GGUFHeader) and "not UTF-8" not in str(full):
        raise Broken(f"refused only where arrays are decoded: {full}")
    if not isinstance(short, GGUFHeader):
        return False
    try:
        report = report_of(short)
    except LlamatelError:
        return True
    json.dumps(report.as_dict(layers=True, tensors=True), allow_nan=False)
    model_text(report), layers_text(report), model_html(report)
    if report.shape is not None:
        _plan(report.shape)
    return True


def _plan(shape: ModelShape) -> None:
    """Plans for several servers and devices, as text and as JSON."""
    for devices, settings in (
        ([], ServerSettings()),
        (DEVICES, ServerSettings(ctx_size=1 << 30, parallel=3)),
        (DEVICES[:1], ServerSettings(ctx_size=0, cache_type_k="q8_0", cache_type_v="q8_0", parallel=2)),
    ):
        report = make_report("fuzz", shape, settings, devices)
        json.dumps(report.as_dict(), allow_nan=False)
        plan_text(report).plain.encode()


def _same(short: GGUFHeader, full: GGUFHeader) -> None:
    if (
        short.tensors != full.tensors
        or short.data_offset != full.data_offset
        or list(short.metadata) != list(full.metadata)
    ):
        raise Broken("skipping arrays and decoding them differ")
    for key, value in short.metadata.items():
        whole = full.metadata[key]
        if isinstance(value, SkippedArray):
            if not isinstance(whole, tuple) or len(whole) != value.count:
                raise Broken(f"{key}: {value} is decoded as something else")
        elif repr(value) != repr(whole):
            raise Broken(f"{key}: {value!r} and {whole!r}")
