"""Writes ``llamatel/plan/config_defaults.json``: defaults of transformers' classes for absent keys.

Requires transformers (``make configs``). Keeps values that may matter for heads, head sizes, layers, states and
contexts; null means that the class has the key.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamatel.plan.config_families import BY_TYPE
from llamatel.plan.config_values import may_change_shape

OUTPUT = Path(__file__).parents[2] / "llamatel" / "plan" / "config_defaults.json"

_KEPT = frozenset(
    """
    H L budget chunk config conv cycles d_ff d_kv d_model decoder dim every expand experts first groups hc idxs index
    indexer interval k kernel layer len length linear local mamba multi n_embd n_inner ngram num offset pattern period
    ple position positions query rank ratio rope seq size ssm state step theta top type types use vocab window
    """.split()  # noqa: SIM905 - a list of words
)
_DROPPED = ("dropout", "token_id", "init", "eps", "quant", "chunk_size_feed", "label", "problem_type", "dtype", "tie_")


def _kept(name: str, value: object) -> bool:
    if name == "pad_token_id":  # RoBERTa's positions start after the padding index
        return True
    if name.startswith("output_") or any(word in name for word in _DROPPED):
        return False
    if may_change_shape(name, 1):
        return True
    return value is not None and any(word in name.split("_") or word in name for word in _KEPT)


def _fields(config_class: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in dataclasses.fields(config_class):
        value = each.default
        if value is dataclasses.MISSING:
            value = each.default_factory() if each.default_factory is not dataclasses.MISSING else None
        if not _kept(each.name, value):
            continue
        if isinstance(value, tuple):
            value = list(value)
        if value is None or isinstance(value, (bool, int, float, str, list, dict)):
            found[each.name] = value
    return found


def _text_part(config: Any) -> Any:
    """Return the innermost text configuration, or None."""
    found = None
    for _ in range(3):
        names = ("text_config", "llm_config", "thinker_config")
        config = next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)
        if config is None or isinstance(config, dict):
            break
        found = config
    return found


def _differences(part: Any, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return a text part's values that differ from ``usual``, its class's defaults."""
    found = part.to_dict()
    return {
        key: value
        for key, value in found.items()
        if _kept(key, value)
        and key != "vocab_size"
        and key in usual
        and usual[key] != value
        and not isinstance(value, (dict, list))
    }


def _text(config_class: Any) -> tuple[Any, dict[str, Any]] | None:
    """Return the class of the text part, and its entry of the table."""
    whole: Any = _text_part(config_class())
    if whole is None or whole.model_type not in BY_TYPE or "bert" in whole.model_type:
        return None
    text_class: Any = type(whole)
    found: dict[str, Any] = {"type": whole.model_type}
    if difference := _differences(whole, _fields(text_class)):
        found["whole"] = difference
    if isinstance(getattr(config_class(), "text_config", None), text_class):
        part: Any = _text_part(config_class(text_config={"vocab_size": whole.vocab_size}))
        if isinstance(part, text_class) and (difference := _differences(part, text_class().to_dict())):
            found["part"] = difference
    return text_class, found


def main() -> int:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    common = {each.name for each in dataclasses.fields(transformers.PreTrainedConfig)}
    defaults: dict[str, Any] = {}
    text: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    names = dict.fromkeys(BY_TYPE)
    for name in [*CONFIG_MAPPING.keys()]:
        try:
            inner = _text(CONFIG_MAPPING[name])
        except Exception as error:  # noqa: BLE001 - a class that needs arguments
            print(f"{name}: {error!r:.100}", file=sys.stderr)
            continue
        if inner is not None:
            text[name] = inner[1]
            parts[inner[1]["type"]] = inner[0]
    for name in names:
        config_class = parts.get(name) or (CONFIG_MAPPING[name] if name in CONFIG_MAPPING else None)  # noqa: SIM401 - lazy
        if config_class is None or (name in text and name not in parts):
            continue
        fields = {key: value for key, value in _fields(config_class).items() if key not in common}
        aliases = getattr(config_class, "attribute_map", {})
        fields |= {alias: None for alias in aliases if alias not in fields and may_change_shape(alias, 1)}
        defaults[name] = dict(sorted(fields.items()))
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(fields)}" for name, fields in sorted(defaults.items()))
    head = f'"transformers": {json.dumps(transformers.__version__)},\n"text": {json.dumps(dict(sorted(text.items())))}'
    OUTPUT.write_text(f'{{{head},\n"defaults": {{\n{lines}\n}}}}\n')
    print(f"{OUTPUT.name}: {len(defaults)} classes, {OUTPUT.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
