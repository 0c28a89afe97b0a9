"""Checked access to a GGUF's metadata under its architecture's prefix; files are untrusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from llamatel.errors import UsageError


class Keys:
    """The metadata under its architecture's prefix; records missing and unusable keys."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise UsageError("the file has no general.architecture: it is not a model")
        self.architecture = architecture
        self._metadata = metadata
        self.missing: list[str] = []

    def raw(self, key: str) -> Any:
        """The value of a key; None if absent."""
        return self._metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str) -> int | None:
        """A count; None where there is none."""
        return _whole(self.raw(key))

    def required(self, key: str) -> int:
        """A required count; 0, and an entry in ``missing``, if absent."""
        value = self.number(key)
        if value is None:
            self.missing.append(f"{self.architecture}.{key}")
        return value or 0

    def real(self, key: str) -> float | None:
        """A number; None where there is none, or one that is not finite."""
        value = self.raw(key)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    def text(self, key: str) -> str | None:
        """A text; None where there is none."""
        value = self.raw(key)
        return value if isinstance(value, str) else None

    def per_layer(self, key: str, layers: int) -> list[int] | None:
        """A number for all layers, or one per layer."""
        value = self.number(key)
        if value is not None:
            return [value] * layers
        found = self.array(key)
        if found is not None and len(found) < layers:
            self.missing.append(f"{self.architecture}.{key} for {layers} layers (it has {len(found)})")
            return None
        return found[:layers] if found is not None else None

    def array(self, key: str) -> list[int] | None:
        """Counts; None where there is no array of them."""
        value = self.raw(key)
        if value is None or isinstance(value, (str, bytes, int, float)) or not isinstance(value, Iterable):
            return None
        found = [_whole(item) for item in value]
        return None if None in found else [item for item in found if item is not None]


def _whole(value: object) -> int | None:
    """A count; None for anything else, such as NaN, a negative number or text."""
    if not isinstance(value, (int, float)) or not 0 <= value < 1 << 63:
        return None
    return int(value)
