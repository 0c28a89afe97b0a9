"""A header's metadata: a mapping of its keys, and the same values as attributes with short names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Scalar: TypeAlias = "int | float | bool | str"


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """An array that was skipped: its kind and length are known, its values are not.

    ``kind`` is the elements' type (``string``, ``f32``, ...), ``offset`` the file's byte where the elements begin.
    """

    kind: str
    count: int
    offset: int

    def __len__(self) -> int:
        return self.count


Value: TypeAlias = "Scalar | tuple[Scalar, ...] | SkippedArray"


class Metadata(Mapping[str, "Value"]):
    """Keys and values as in the file: ``metadata["llama.block_count"]``.

    Attributes leave out what is obvious: ``metadata.architecture`` is ``general.architecture``, ``.block_count`` is
    ``{architecture}.block_count``, ``.head_count`` is ``{architecture}.attention.head_count``, and a dot or a dash
    within a key is an underscore: ``.rope_freq_base``, ``.tokenizer_ggml_model``. A key that the file lacks is an
    AttributeError, never a made-up value.
    """

    def __init__(self, values: dict[str, Value], kinds: dict[str, str]) -> None:
        self._values = values
        self._kinds = kinds
        self._names: dict[str, str] | None = None

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def kind(self, key: str) -> str:
        """The GGUF type of a value: ``u32``, ``string``, ``array of f32``, ..."""
        return self._kinds[key]

    @property
    def _architecture(self) -> str | None:
        value = self._values.get("general.architecture")
        return value if isinstance(value, str) else None

    def own(self, name: str) -> Value | None:
        """``{architecture}.{name}``, the model's own key: ``own("attention.head_count")``."""
        return self._values.get(f"{self._architecture}.{name}")

    def _attributes(self) -> dict[str, str]:
        if self._names is None:
            names: dict[str, str] = {}
            prefixes = ["general."]
            if self._architecture is not None:
                prefixes += [f"{self._architecture}.", f"{self._architecture}.attention."]
            for prefix in prefixes:
                for key in self._values:
                    if key.startswith(prefix):
                        names.setdefault(_identifier(key[len(prefix) :]), key)
            for key in self._values:
                names.setdefault(_identifier(key), key)
            self._names = names
        return self._names

    def __getattr__(self, name: str) -> Value:
        if name.startswith("_"):  # also keeps copy and pickle, which look before there are any values, from recursing
            raise AttributeError(name)
        names = self._attributes()
        if name not in names:
            near = difflib.get_close_matches(name, names, 3)
            advice = f"it has {' and '.join(near)}" if near else "its keys are list(metadata)"
            raise AttributeError(f"this file's metadata has no {name!r}; {advice}")
        return self._values[names[name]]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for name in self._attributes() if name.isidentifier())})

    def __repr__(self) -> str:
        return f"<Metadata of {self._architecture or 'an unnamed architecture'}: {len(self)} keys>"


def _identifier(key: str) -> str:
    return key.replace(".", "_").replace("-", "_")
