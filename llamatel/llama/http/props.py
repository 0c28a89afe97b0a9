"""Parses ``/props`` and ``/v1/models``, which neither wake a sleeping server nor keep it awake."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llamatel.inputs.documents import count, text


@dataclass(frozen=True, slots=True)
class ServerProps:
    """Source: tools/server/server-context.cpp, ``get_props``. None where the server does not report it."""

    build: str | None = None
    model_path: str | None = None
    alias: str | None = None
    slots: int | None = None
    sleeping: bool | None = None
    role: str | None = None
    """``router``, or None."""


def parse_props(document: Mapping[str, object]) -> ServerProps:
    """The properties; unknown fields are ignored."""
    sleeping = document.get("is_sleeping")
    return ServerProps(
        build=text(document.get("build_info")),
        model_path=text(document.get("model_path")),
        alias=text(document.get("model_alias")),
        slots=count(document.get("total_slots"), 1),
        sleeping=sleeping if isinstance(sleeping, bool) else None,
        role=text(document.get("role")),
    )


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Source: tools/server/server-context.cpp, ``get_models``. None where the server does not report it."""

    name: str | None = None
    """The alias, else the file's name."""
    trained_context: int | None = None
    """Tokens that the model was trained for; llama.cpp caps what a slot may hold at them, not the pool."""
    has_architecture: bool = False
    """Whether there is such a field, as in builds of October 2026 and later."""


def parse_model_card(entry: object) -> ModelCard:
    """One entry of the list of models."""
    if not isinstance(entry, dict):
        return ModelCard()
    name = text(entry.get("id"))
    if name is not None and name.endswith(".gguf"):
        # Without an alias it is the path of the file; that of a model from a hub has slashes, too.
        name = name.rpartition("/")[2]
    meta = entry.get("meta")
    trained = count(meta.get("n_ctx_train"), 1) if isinstance(meta, dict) else None
    return ModelCard(name, trained, "architecture" in entry)


_BUILD_NUMBER = re.compile(r"b(\d{4,6})\b")
_HARMLESS_BUILD = 10566


def is_scrape_harmless(props: ServerProps, card: ModelCard) -> bool | None:
    """Whether ``/metrics`` neither wakes the server nor keeps it awake, as from August 2026 on; None where unknown."""
    if card.has_architecture:
        return True
    number = _BUILD_NUMBER.match(props.build or "")
    return None if number is None else int(number.group(1)) >= _HARMLESS_BUILD
