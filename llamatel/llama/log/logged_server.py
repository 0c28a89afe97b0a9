"""What llama.cpp's log says about the server itself: where it listens, its model, its slots, its memory, its build."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llamatel.llama.log.placement import learn_placement
from llamatel.snapshots import Placement, PromptCacheState

_SIZE = r"\d{1,9}(?:\.\d{1,6})?"
_LISTENING = re.compile(r"listening on (?:https?://(\S+):(\d{1,5})\b|unix://(\S+))")
_LOADING = re.compile(r"load_model: loading model '(.*)'")
_SLOTS = re.compile(
    r"initializing(?: slots)?, n_slots = (\d{1,12})(?:, n_ctx_slot = (\d{1,12}), kv_unified = '(\w+)')?"
)
_DRAFT = re.compile(r"common_speculative_init_result: loading draft model '(.*)'")
_PATH = re.compile(r"load_model: local path '(.*)'")
_POOL = re.compile(r"llama_context: n_ctx += (\d{1,12})\b")
_SEQUENCE = re.compile(
    r"srv +\w+: (?:capping per-slot context \((\d{1,12})\)|"
    r"--kv-unified-per-slot \(\d+\) exceeds the per-slot pool capacity \((\d{1,12})\)|"
    r"the slot context \((\d{1,12})\) exceeds the training context)"
)
_KEYS_AND_VALUES = re.compile(rf"llama_kv_cache\w*: size = .*, K \(\w+\): +({_SIZE}) MiB, V \(\w+\): +({_SIZE}) MiB")
_STATES = re.compile(rf"llama_memory_recurrent: size = .*MiB \(.*\), ((?:[RSP] \(\w+\): +{_SIZE} MiB(?:, )?)+)")
_STATE = re.compile(rf": +({_SIZE}) MiB")
_COMPRESSED = re.compile(rf"\S+: \S+ ratio = .*, state = .*, size = +({_SIZE}) MiB")
_PROMPTS = re.compile(rf"srv +update: +- cache state: (\d{{1,12}}) prompts, ({_SIZE}) MiB")
_MIB = 1 << 20
_BUILD = re.compile(r"(?:build_info: |^build: )(\S+)(?: \((\w+)\))?")


@dataclass(frozen=True, slots=True)
class LoggedServer:
    """What the log said so far; None where it has not (yet)."""

    host: str | None = None
    port: int | None = None
    model_path: str | None = None
    """Its file, or its name on a hub."""
    draft_path: str | None = None
    """The file of a second model, which drafts; older builds, which gave it a cache for each slot, word this in another
    way."""
    build: str | None = None
    slots: int | None = None
    slot_context: int | None = None
    kv_unified: bool | None = None
    pool: int | None = None
    """Tokens of the whole KV cache; at the default verbosity only builds before May 2026 say it."""
    sequence_context: int | None = None
    """Tokens that one sequence could have, where ``slot_context`` is less because it was capped."""
    sleeping: bool = False
    reported: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the KV cache by part (k, v, recurrent, other), to 0.01 MiB a line; builds from May 2026 on say it at
    ``-lv 4`` alone."""
    loading_anew: bool = False
    """What was reported belongs to the model as it was loaded before."""
    prompt_cache: PromptCacheState | None = None
    placement: Placement | None = None
    placed_anew: bool = False
    """What ``placement`` says belongs to the model as it was loaded before."""


def _reported(facts: LoggedServer, **sizes: float) -> LoggedServer:
    parts = {} if facts.loading_anew else dict(facts.reported)
    for part, mib in sizes.items():
        parts[part] = parts.get(part, 0) + round(mib * _MIB)
    return replace(facts, reported=parts, loading_anew=False)


def _memory(facts: LoggedServer, text: str) -> LoggedServer | None:
    """What a line says of memory: src/llama-kv-cache.cpp, llama-memory-recurrent.cpp, llama-kv-cache-dsv4.cpp."""
    if found := _KEYS_AND_VALUES.match(text):
        return _reported(facts, k=float(found.group(1)), v=float(found.group(2)))
    if found := _STATES.match(text):
        return _reported(facts, recurrent=sum(map(float, _STATE.findall(found.group(1)))))
    if found := _COMPRESSED.match(text):
        return _reported(facts, other=float(found.group(1)))
    if found := _PROMPTS.match(text):
        state = PromptCacheState(int(found.group(1)), round(float(found.group(2)) * _MIB))
        return replace(facts, prompt_cache=state)
    return None


def _context(facts: LoggedServer, text: str) -> LoggedServer | None:
    """What a line says of the context's size; a second context, for drafting, does not count."""
    if found := _POOL.match(text):
        return replace(facts, pool=facts.pool or int(found.group(1)))
    if found := _SEQUENCE.match(text):
        size = int(next(filter(None, found.groups())))
        return replace(facts, sequence_context=facts.sequence_context or size)
    return None


def _initializing(facts: LoggedServer, slots: str, context: str | None, unified: str | None) -> LoggedServer:
    shape = (
        int(slots),
        int(context) if context else facts.slot_context,
        unified == "true" if unified else facts.kv_unified,
    )
    if facts.loading_anew and shape != (facts.slots, facts.slot_context, facts.kv_unified):
        facts = replace(facts, reported={})
    return replace(facts, slots=shape[0], slot_context=shape[1], kv_unified=shape[2])


def _placed(facts: LoggedServer, text: str) -> LoggedServer | None:
    """What a line says of devices; a model that is loaded again is placed anew."""
    before = facts.placement
    if facts.placed_anew and before is not None:
        before = Placement(no_gpu=before.no_gpu)
    placement = learn_placement(before, text)
    return None if placement is None else replace(facts, placement=placement, placed_anew=False)


def learn(facts: LoggedServer, text: str) -> LoggedServer | None:
    """The facts with what a line's ``text`` adds to them; None if it is about something else.

    Source: tools/server/server.cpp and server-context.cpp; ``build:`` is how builds before spring 2026 put it.
    """
    if "listening on " in text and (found := _LISTENING.search(text)):
        host, port, socket = found.groups()
        return replace(facts, host=socket or host.strip("[]"), port=int(port) if port else None)
    if "loading model '" in text and (found := _LOADING.search(text)):
        # Also after it has slept; then the library may have nothing to say on what it said the first time.
        return replace(
            facts, model_path=found.group(1), draft_path=None, pool=None, sequence_context=None,
            loading_anew=bool(facts.reported),
            placed_anew=facts.placement is not None and bool(facts.placement.buffers),
        )  # fmt: skip
    if "draft model '" in text and (found := _DRAFT.match(text)):
        return replace(facts, draft_path=found.group(1))
    if "local path '" in text and (found := _PATH.search(text)):
        return replace(facts, model_path=found.group(1))
    if "n_slots = " in text and (found := _SLOTS.search(text)):
        return _initializing(facts, *found.groups())
    if "context" in text and (known := _context(facts, text)) is not None:
        return known
    if (placed := _placed(facts, text)) is not None:
        return placed
    if " MiB" in text and (known := _memory(facts, text)) is not None:
        return known
    if text.endswith("ing sleeping state"):  # "entering", "exiting"; said by the queue and by the server
        return replace(facts, sleeping="entering" in text, prompt_cache=None)
    if "build" in text and (found := _BUILD.search(text)):
        number, commit = found.groups()
        return replace(facts, build=f"b{number}-{commit}" if commit else number)
    return None
