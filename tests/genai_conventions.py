"""Names of the conventions used by llamatel (docs/semconv.json), and those of the Python package."""

from __future__ import annotations

import json
from pathlib import Path

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

DOCUMENT = json.loads((Path(__file__).parent.parent / "docs" / "semconv.json").read_text(encoding="utf-8"))
TYPES: dict[str, type] = {"string": str, "int": int, "double": float, "boolean": bool, "string[]": tuple}

REQUIRED = ("gen_ai.operation.name", "gen_ai.provider.name")
ATTRIBUTES: dict[str, type] = {name: TYPES[kind] for name, kind in DOCUMENT["attributes"].items()}
OPERATIONS = tuple(DOCUMENT["operations"])
"""Values of gen_ai.operation.name; the conventions have none for reranking and allow custom values."""

METRICS: dict[str, tuple[str, str]] = {
    name: (metric["instrument"], metric["unit"])
    for name, metric in DOCUMENT["metrics"].items()
    if name.startswith("gen_ai.client.")
}
"""Of clients: instrument and unit."""


def shipped(module: object) -> set[str]:
    """The names in the Python package."""
    return {value for name, value in vars(module).items() if name.startswith("GEN_AI") and isinstance(value, str)}


SHIPPED_ATTRIBUTES = shipped(gen_ai_attributes)
SHIPPED_METRICS = shipped(gen_ai_metrics)
