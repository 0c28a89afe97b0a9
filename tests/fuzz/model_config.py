"""Properties of the config.json reader for any bytes: a plan, or a one-line error."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from llamatel.errors import GGUFError, UsageError
from llamatel.flags.server_settings import ServerSettings
from llamatel.gguf.model_choices import parse_config
from llamatel.plan.cache_plan import cache_plan
from llamatel.plan.model_report import ModelReport
from llamatel.plan.plan_report import make_report
from llamatel.plan.shape_from_config import shape_from_config
from llamatel.ui.view.model_page import model_text
from llamatel.ui.view.plan_page import plan_text
from tests.fuzz.target import Broken

_SAMPLES = Path(__file__).parents[1] / "configs" / "converted.json"
_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 512, 513, 1 << 31, 1 << 64, 10**400, 0.5, float("inf"), float("nan"), "", "7",
    "x\n", [], [0], [1, 2], [None], ["full_attention"], ["sliding_attention"] * 5, [[]], {}, {"a": 1},
    {"text_config": {}},
)  # fmt: skip


def corpus() -> list[bytes]:
    """A configuration of each family."""
    samples = json.loads(_SAMPLES.read_text(encoding="utf-8"))
    return [json.dumps(entry["config"]).encode() for entry in samples.values()]


def structured(dice: random.Random, valid: list[bytes]) -> bytes:
    """A configuration with some values replaced, removed, added or moved from another."""
    config: dict[str, Any] = json.loads(dice.choice(valid))
    other: dict[str, Any] = json.loads(dice.choice(valid))
    parts = [config, *(each for each in config.values() if isinstance(each, dict))]
    for _ in range(dice.randint(1, 6)):
        part = dice.choice(parts)
        key = dice.choice([*part, *other]) if part or other else "x"
        kind = dice.randrange(5)
        if kind == 0:
            part.pop(key, None)
        elif kind == 1 and key in other:
            part[key] = other[key]
        elif kind == 2:
            part[key] = {**part}
        else:
            part[key] = dice.choice(_ODD)
    return json.dumps(config).encode()


def check(data: bytes) -> bool:
    """Raise unless ``data`` is planned or refused in one line; True if it was planned."""
    try:
        config = parse_config(data, "config.json")
        shape = shape_from_config(config)
    except (GGUFError, UsageError) as error:
        if "\n" in str(error):
            raise Broken(f"not one line: {error!r}") from error
        if len(str(error)) > 2000:
            raise Broken(f"too long a line: {len(str(error))}") from error
        return False
    plan = cache_plan(shape, ServerSettings(ctx_size=4096, parallel=1))
    if plan.exact:
        raise Broken("a configuration is never exact")
    kept = any(layer.cached or layer.state is not None for layer in shape.layers)
    if plan.refused is None and plan.total_bytes == 0 and shape.cache != "none" and kept:
        widths = [(layer.kv_heads, layer.key_length) for layer in shape.layers if layer.attends and layer.cached]
        raise Broken(f"0 bytes of cache for a model that attends: {widths[:5]}")
    report = ModelReport("config.json", shape, config=config)
    json.dumps(report.as_dict(layers=True), allow_nan=False)
    model_text(report).plain.encode()
    page = make_report("config.json", shape, ServerSettings())
    json.dumps(page.as_dict(), allow_nan=False)
    plan_text(page).plain.encode()
    return True
