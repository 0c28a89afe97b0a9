"""The values of a ``config.json`` with the transformers library's defaults, and the keys that were read.

Sources: transformers' configuration classes (``config_defaults.json``, made by ``tests/configs``), llama.cpp's
``conversion/base.py`` for the names that one value has in different families.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, NoReturn

from llamatel.errors import UsageError

MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS (src/llama-hparams.h:11)."""
_MAX_COUNT = 1 << 31

LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_transformer_layers")
WIDTH = ("hidden_size", "n_embd", "d_model", "dim", "n_embed", "model_dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = ("num_key_value_heads", "n_kv_heads")
HEAD_LENGTH = ("head_dim", "attention_head_dim")

_AFFECTS = frozenset({"head", "heads", "kv", "layer", "layers", "depth", "cycles", "loops", "gqa", "mqa", "mla", "cla"})
"""Words in names of keys that can change heads, head sizes or layers."""
_ATTENTION = frozenset({"groups", "group", "dim", "size", "types", "type", "pattern", "rank", "length"})
"""Words that do so together with ``attention``."""
_HARMLESS = frozenset(
    {
        "act", "activation", "adapter", "altup", "audio", "aux", "bias", "checkpoint", "checkpointing", "classifier",
        "cls", "deepstack", "dense", "drop", "dropout", "dtype", "embedding", "embeddings", "eps", "epsilon", "expert",
        "experts", "ffn", "fp32", "gate", "gated", "hash", "image", "implementation", "init", "initialization",
        "initializer", "label", "labels", "laurel", "layernorm", "lm", "lora", "loss", "mlp", "mm", "moe", "mtp",
        "multiplier", "multipliers", "nextn", "norm", "normalization", "output", "parallel", "ple", "pooler",
        "projector", "quant", "quantization", "residual", "rmsnorm", "rope", "rotary", "router", "scale", "scaling",
        "softcap", "softcapping", "swiglu", "token", "tokens", "tp", "video", "vision", "vocab",
    }
)  # fmt: skip
"""Words in names of keys that change none of these, whatever other words are in the name."""
WINDOW_KEYS = frozenset({"max_window_layers", "layer_switch", "order_of_interleaved_layers"})
"""Keys about sliding windows that llama.cpp's converter never reads: other keys have the window's layers."""
_WORD = re.compile(r"[A-Z]?[a-z]+[0-9]*|[A-Z]+(?![a-z])|[0-9]+")


@lru_cache(maxsize=1)
def _library() -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = json.loads(
        files("llamatel.plan").joinpath("config_defaults.json").read_text(encoding="utf-8")
    )
    return found


def library_defaults(model_type: str) -> Mapping[str, Any] | None:
    """Defaults of the library's class of that name, by key; None if the library has no such class."""
    found: Mapping[str, Any] | None = _library()["defaults"].get(model_type)
    return found


def library_text_type(model_type: str) -> str | None:
    """The ``model_type`` of the text part of a model that has several parts."""
    found = _library()["text"].get(model_type)
    return None if found is None else str(found["type"])


def library_text_defaults(model_type: str, *, whole: bool) -> Mapping[str, Any]:
    """Defaults of that text part where they differ from its own class's; ``whole``: the file gives no text part."""
    found = _library()["text"].get(model_type) or {}
    values: Mapping[str, Any] = found.get("whole" if whole else "part", {})
    return values


def may_change_shape(key: str, value: object) -> bool:
    """Whether an unknown key can change heads, head sizes or layers."""
    if value is None or value is False or value in ("", 0, [], {}):
        return False
    words = {word.lower() for word in _WORD.findall(key)}
    if words & _HARMLESS:
        return False
    return bool(words & _AFFECTS or {"multi", "query"} <= words or ("attention" in words and words & _ATTENTION))


class ConfigValues:
    """The values of one model's configuration. Methods accept the names that a value may have, the usual one first.

    Raises UsageError with the key for an invalid value.
    """

    def __init__(self, model_type: str, given: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> None:
        self.model_type = model_type
        self.in_library = defaults is not None
        self.is_part = False
        """Whether it is the text part of a larger model, with its own class in the library."""
        self.read: set[str] = set()
        self._given = given
        self._defaults = defaults or {}

    def get(self, *names: str) -> Any:
        """The value; None where it is null, or absent without a default."""
        self.read.update(names)
        given = [name for name in names if name in self._given]
        for name in given:
            if self._given[name] is not None:
                return self._given[name]
        if given:
            return None
        return next((self._defaults[name] for name in names if self._defaults.get(name) is not None), None)

    def is_given(self, name: str) -> bool:
        """Whether the file has the key, null or not."""
        self.read.add(name)
        return name in self._given

    def number(self, *names: str) -> int | None:
        """A count; None if absent."""
        value = self.get(*names)
        return None if value is None else self._count(value, names)

    def need(self, *names: str) -> int:
        """A required count."""
        value = self.number(*names)
        if value is None:
            self.fail("has no", names[0])
        return value

    def counts(self, *names: str) -> int | list[int] | None:
        """A count for all layers, or a list with one per layer."""
        value = self.get(*names)
        if isinstance(value, list):
            return [self._count(each, names) for each in value[:MAX_LAYERS]]
        return None if value is None else self._count(value, names)

    def texts(self, *names: str) -> list[str] | None:
        """A list of words, such as the types of layers; None where there is none."""
        value = self.get(*names)
        if not isinstance(value, list):
            return None
        return [str(each) for each in value[:MAX_LAYERS]]

    def numbers(self, *names: str) -> list[int] | None:
        """A list of counts, null read as 0; None where there is no list."""
        value = self.get(*names)
        if not isinstance(value, list):
            return None
        return [0 if each is None else self._count(each, names) for each in value[:MAX_LAYERS]]

    def section(self, *names: str) -> ConfigValues:
        """A nested part of the configuration; empty if absent."""
        value = self.get(*names)
        default = next((self._defaults[name] for name in names if isinstance(self._defaults.get(name), dict)), None)
        return ConfigValues(self.model_type, value if isinstance(value, Mapping) else {}, default)

    @property
    def layers(self) -> int:
        """The number of layers."""
        found = self.need(*LAYERS)
        if not 0 < found <= MAX_LAYERS:
            self.fail(f"has {found} layers (num_hidden_layers), llama.cpp accepts 1 to {MAX_LAYERS}")
        return found

    @property
    def head_length(self) -> int:
        """Values of one head: ``head_dim``, or the width divided by the heads."""
        length = self.number(*HEAD_LENGTH)
        if length is None:
            heads = self.need(*HEADS)
            length = self.need(*WIDTH) // heads if heads else 0
        return length

    def fail(self, *words: str) -> NoReturn:
        """Raise UsageError; ``words`` describe what the configuration lacks."""
        name = f"'{self.model_type}'" if self.model_type.isprintable() else repr(self.model_type)
        raise UsageError(f"the config.json of a {name:.80} model {' '.join(words)}")

    def unknown_keys(self) -> list[str]:
        """Unread keys that are not the library's and can change heads, head sizes or layers."""
        return sorted(
            key
            for key, value in self._given.items()
            if key not in self.read and key not in self._defaults and may_change_shape(key, value)
        )

    def _count(self, value: object, names: Sequence[str]) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _MAX_COUNT:
            name = next((name for name in names if name in self._given), names[0])
            self.fail(f"has no count in {name}: {value!r:.40}")
        return int(value)
