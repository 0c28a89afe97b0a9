"""What llama.cpp's log says about the server itself: where it listens, its model, its slots, its build."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_LISTENING = re.compile(r"listening on (?:https?://(\S+):(\d+)|unix://(\S+))")
_LOADING = re.compile(r"load_model: loading model '(.*)'")
_SLOTS = re.compile(r"initializing(?: slots)?, n_slots = (\d+)(?:, n_ctx_slot = (\d+), kv_unified = '(\w+)')?")
_BUILD = re.compile(r"(?:build_info: |^build: )(\S+)(?: \((\w+)\))?")


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the log said so far; None where it has not (yet)."""

    host: str | None = None
    port: int | None = None
    model_path: str | None = None
    build: str | None = None
    slots: int | None = None
    slot_context: int | None = None
    kv_unified: bool | None = None


def learn(facts: ServerFacts, text: str) -> ServerFacts | None:
    """The facts with what a line's ``text`` adds to them; None if it is about something else.

    Source: tools/server/server.cpp and server-context.cpp; ``build:`` is how builds before spring 2026 put it.
    """
    if "listening on " in text and (found := _LISTENING.search(text)):
        host, port, socket = found.groups()
        return replace(facts, host=socket or host.strip("[]"), port=int(port) if port else None)
    if "loading model '" in text and (found := _LOADING.search(text)):
        return replace(facts, model_path=found.group(1))
    if "n_slots = " in text and (found := _SLOTS.search(text)):
        slots, context, unified = found.groups()
        return replace(
            facts,
            slots=int(slots),
            slot_context=int(context) if context else facts.slot_context,
            kv_unified=unified == "true" if unified else facts.kv_unified,
        )
    if "build" in text and (found := _BUILD.search(text)):
        number, commit = found.groups()
        return replace(facts, build=f"b{number}-{commit}" if commit else number)
    return None
