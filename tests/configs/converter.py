"""The GGUF keys that llama.cpp's own converter writes for a configuration, without any weights.

Needs llama.cpp's source tree (``conversion/``, ``gguf-py/``), torch and transformers; used by ``python -m
tests.configs`` only.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Converter:
    """The converter of one source tree."""

    def __init__(self, tree: Path) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        sys.path.insert(0, str(tree))
        logging.disable(logging.CRITICAL)
        import conversion
        import gguf
        from conversion import base

        self._base, self._gguf, self._conversion = base, gguf, conversion
        self._raw: Mapping[str, Any] | None = None
        self._library = True
        self._load = base.ModelBase.load_hparams
        conversion.load_all_models()
        base.ModelBase.index_tensors = lambda *_, **__: {}  # there are no weights
        base.ModelBase.load_hparams = staticmethod(self._load_with_raw)
        for model in set(base.ModelBase._model_classes[base.ModelType.TEXT].values()):
            for each in model.__mro__:
                for name, value in (
                    ("_get_suppress_tokens", None),
                    ("_is_tokenizer_xlmroberta", False),
                    ("_try_set_pooling_type", None),
                    ("_read_hash_constants", [1]),
                ):
                    if name in each.__dict__:  # they read a tokenizer or tensors
                        setattr(each, name, lambda *_, value=value: value)

    def _load_with_raw(self, folder: Path, is_mistral_format: bool, guess: bool = True) -> Any:
        if self._library is False:
            return json.loads((folder / "config.json").read_text())
        found = self._load(folder, is_mistral_format, guess)
        return _merged(found, self._raw) if self._raw is not None else found

    def convert(self, config: Mapping[str, Any], *, library: bool = True) -> dict[str, Any]:
        """Return the metadata; without ``library`` from the file alone, not by the library's class.

        Raises whatever the converter raises for what it cannot convert.
        The converter reads a configuration through transformers, whose newest classes drop some required keys: if one
        is missing, the file's own keys are added.
        """
        self._raw, self._library = None, library
        try:
            return self._once(config)
        except KeyError:
            self._raw = config
            return self._once(config)

    def _once(self, config: Mapping[str, Any]) -> dict[str, Any]:
        base = self._base
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "config.json").write_text(json.dumps(config))
            hparams = base.ModelBase.load_hparams(folder, False)
            model_class = self._conversion.get_model_class(base.get_model_architecture(hparams, base.ModelType.TEXT))
            values = {**hparams, **(hparams.get("text_config") or {})}
            if any(each.__name__ == "_QwenMtpMixin" for each in model_class.__mro__):
                model_class.no_mtp = not values.get("mtp_num_hidden_layers")  # otherwise it reads the tensors
            model = model_class(folder, self._gguf.LlamaFileType.ALL_F32, folder / "model.gguf")
            model.set_gguf_parameters()
        model = getattr(model, "impl", model)
        architecture = self._gguf.MODEL_ARCH_NAMES[model.model_arch]
        found = {
            key: _plain(value.value)
            for key, value in model.gguf_writer.kv_data[0].items()
            if key.startswith(f"{architecture}.")
        }
        return {"general.architecture": architecture, **found}


def _merged(found: dict[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in raw.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            _merged(found[key], value)
        elif value is not None:
            found[key] = value
    return found


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [int(each) if isinstance(each, bool) else _plain(each) for each in value]
    return value
