"""Parses what llama.cpp's log reports of the server itself: its address, model, slots, memory and build.

Nothing in it names a file to open or an address to connect to: a text log can be forged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llamatel.flags.server_settings import ServerSettings
from llamatel.llama.log.call_groups import DECISION, RERANK
from llamatel.llama.log.placement import learn_placement
from llamatel.snapshots import Placement, PromptCacheState

_SIZE = r"\d{1,9}(?:\.\d{1,6})?"
_FROM = r"(?:srv +)?\w{1,12}: "
"""The function that printed a message."""
_LISTENING = re.compile(
    r"(?:" + _FROM + r"(?:server is )?|server is )"
    r"listening on (?:https?://([^\s/]{1,255}):(\d{1,5})\b|unix://(\S{1,255}))"
)
_LOADING = re.compile(_FROM + r"loading model '([^\n]{0,4096})'")
_SLOTS = re.compile(
    _FROM + r"initializing(?: slots)?, n_slots = (\d{1,12})(?:, n_ctx_slot = (\d{1,12}), kv_unified = '(\w{1,5})')?"
)
_FITTED = re.compile(r"\w{1,64}: fitting params to free memory took \d")
_DRAFT = re.compile(r"common_speculative_init_result: loading draft model '([^\n]{0,4096})'")
_PATH = re.compile(_FROM + r"local path '([^\n]{0,4096})'")
_META = re.compile(
    r"llama_model_loader: loaded meta data with \d{1,9} key-value pairs and \d{1,9} tensors "
    r"from ([^\n]{1,4096}) \(version "
)
_POOL = re.compile(r"llama_context: n_ctx += (\d{1,12})\b")
_SEQUENCE = re.compile(
    r"srv +\w{1,12}: (?:capping per-slot context \((\d{1,12})\)|"
    r"--kv-unified-per-slot \(\d{1,12}\) exceeds the per-slot pool capacity \((\d{1,12})\)|"
    r"the slot context \((\d{1,12})\) exceeds the training context)"
)
_KEYS_AND_VALUES = re.compile(
    rf"llama_kv_cache\w{{0,32}}: size = [^\n]{{0,200}}?, "
    rf"K \(\w{{1,16}}\): +({_SIZE}) MiB, V \(\w{{1,16}}\): +({_SIZE}) MiB"
)
_STATES = re.compile(
    rf"llama_memory_recurrent: size = [^\n]{{0,200}}?MiB \([^()\n]{{0,200}}\), "
    rf"((?:[RSP] \(\w{{1,16}}\): +{_SIZE} MiB(?:, )?){{1,3}})"
)
_STATE = re.compile(rf": {{1,16}}({_SIZE}) MiB")
_COMPRESSED = re.compile(
    rf"\w{{1,64}}: \S{{1,64}} ratio = [^\n]{{0,200}}?, state = [^\n]{{0,200}}?, size = +({_SIZE}) MiB"
)
_PROMPTS = re.compile(rf"srv +update: +- cache state: (\d{{1,12}}) prompts, ({_SIZE}) MiB")
_SLEEPING = re.compile(r"(?:srv|que) +\w{1,12}: (?:server is )?(entering|exiting) sleeping state$")
_DECIDES = re.compile(r"srv {1,16}\w{1,12}: decision model type: [\w.-]{1,64}$")
_RANKS = re.compile(r"\w{1,64}: model default pooling_type is \[-?\d{1,3}\], but \[4\] was specified$")
"""The pooling LLAMA_POOLING_TYPE_RANK."""
_MIB = 1 << 20
_BUILD = re.compile(r"(?:srv +\w{1,12}: |\w{1,64}: )?build_info: (\S{1,64})|build: (\d{1,9}) \((\w{1,64})\)")


@dataclass(frozen=True, slots=True)
class LoggedServer:
    """What was logged so far; None where not logged (yet)."""

    host: str | None = None
    """Set once it listens."""
    port: int | None = None
    model_path: str | None = None
    """Its file, or its name on a hub."""
    draft_path: str | None = None
    """The file of the draft model; older builds, which gave it a cache for each slot, print another message."""
    build: str | None = None
    slots: int | None = None
    slot_context: int | None = None
    kv_unified: bool | None = None
    pool: int | None = None
    """Tokens of the whole KV cache; at the default verbosity only builds before May 2026 print it."""
    sequence_context: int | None = None
    """Tokens that one sequence could have, if ``slot_context`` was capped."""
    sleeping: bool = False
    operation: str | None = None
    """What its requests without timings are: ``decision`` (October 2026), or ``rerank`` where that is logged, as the
    model has another pooling by default; None: embeddings, or unknown."""
    reported: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the KV cache by part (k, v, recurrent, other), to 0.01 MiB a line; builds from May 2026 on print it
    only at ``-lv 4``."""
    reloading: bool = False
    """Whether ``reported`` is from the previous load of the model."""
    prompt_cache: PromptCacheState | None = None
    placement: Placement | None = None
    replacing: bool = False
    """Whether ``placement`` is from the previous load of the model."""

    def completed(self, settings: ServerSettings | None) -> ServerSettings | None:
        """The given settings, with slots and pool from the log if llama.cpp chose them itself."""
        if settings is not None and self.slots is not None:
            settings = replace(settings, parallel=self.slots, given=settings.given | {"parallel"})
        if settings is not None and self.kv_unified is not None:
            settings = replace(settings, kv_unified=self.kv_unified, given=settings.given | {"kv_unified"})
        return settings


def _reported(known: LoggedServer, **sizes: float) -> LoggedServer:
    parts = {} if known.reloading else dict(known.reported)
    for part, mib in sizes.items():
        parts[part] = parts.get(part, 0) + round(mib * _MIB)
    return replace(known, reported=parts, reloading=False)


def _memory(known: LoggedServer, text: str) -> LoggedServer | None:
    """Memory: src/llama-kv-cache.cpp, llama-memory-recurrent.cpp, llama-kv-cache-dsv4.cpp."""
    if " MiB" not in text:
        return None
    if found := _KEYS_AND_VALUES.match(text):
        return _reported(known, k=float(found.group(1)), v=float(found.group(2)))
    if found := _STATES.match(text):
        return _reported(known, recurrent=sum(map(float, _STATE.findall(found.group(1)))))
    if found := _COMPRESSED.match(text):
        return _reported(known, other=float(found.group(1)))
    if found := _PROMPTS.match(text):
        state = PromptCacheState(int(found.group(1)), round(float(found.group(2)) * _MIB))
        return replace(known, prompt_cache=state)
    return None


def _context(known: LoggedServer, text: str) -> LoggedServer | None:
    """The context's size; a second context, for drafting, does not count."""
    if "context" not in text:
        return None
    if found := _POOL.match(text):
        return replace(known, pool=known.pool or int(found.group(1)))
    if found := _SEQUENCE.match(text):
        size = int(next(filter(None, found.groups())))
        return replace(known, sequence_context=known.sequence_context or size)
    return None


def _kind(known: LoggedServer, text: str) -> LoggedServer | None:
    """Whether it reranks, or decides."""
    if "decision model type: " in text and _DECIDES.match(text):
        return replace(known, operation=DECISION)
    if "pooling_type is" in text and _RANKS.match(text):
        return replace(known, operation=RERANK)
    return None


def _initializing(known: LoggedServer, slots: str, context: str | None, unified: str | None) -> LoggedServer:
    shape = (
        int(slots),
        int(context) if context else known.slot_context,
        unified == "true" if unified else known.kv_unified,
    )
    if known.reloading and shape != (known.slots, known.slot_context, known.kv_unified):
        known = replace(known, reported={})
    return replace(known, slots=shape[0], slot_context=shape[1], kv_unified=shape[2])


def _placed(known: LoggedServer, text: str) -> LoggedServer | None:
    """Devices; an earlier placement is dropped once the model is loaded again."""
    before = known.placement
    if known.replacing and before is not None:
        before = Placement(no_gpu=before.no_gpu)
    placement = learn_placement(before, text)
    return None if placement is None else replace(known, placement=placement, replacing=False)


def _fitted(known: LoggedServer) -> LoggedServer:
    """Without what was logged while llama.cpp tried parameters (``-fit``), which it prints as of a load."""
    placement = known.placement
    if placement is not None and not known.replacing:
        placement = Placement(no_gpu=placement.no_gpu)
    return replace(
        known, pool=None, sequence_context=None, reported=known.reported if known.reloading else {}, placement=placement
    )


def learn(known: LoggedServer, text: str) -> LoggedServer | None:
    """``known`` updated with a message; None if it is about something else.

    Source: tools/server/server.cpp and server-context.cpp; builds before spring 2026 print ``build:``.
    """
    if "listening on " in text and (found := _LISTENING.match(text)):
        host, port, socket = found.groups()
        return replace(known, host=socket or host.strip("[]"), port=int(port) if port else None)
    if "loading model '" in text and (found := _LOADING.match(text)):
        # Also after sleep; then the library may not repeat what it printed the first time.
        return replace(
            known, model_path=found.group(1), draft_path=None, pool=None, sequence_context=None,
            reloading=bool(known.reported),
            replacing=known.placement is not None and bool(known.placement.buffers),
        )  # fmt: skip
    if "fitting params" in text and _FITTED.match(text):
        return _fitted(known)
    if "draft model '" in text and (found := _DRAFT.match(text)):
        return replace(known, draft_path=found.group(1))
    if "local path '" in text and (found := _PATH.match(text)):
        return replace(known, model_path=found.group(1))
    if known.model_path is None and "meta data" in text and (found := _META.match(text)):
        return replace(known, model_path=found.group(1))
    if "n_slots = " in text and (found := _SLOTS.match(text)):
        return _initializing(known, *found.groups())
    for part in (_context, _placed, _memory):
        if (updated := part(known, text)) is not None:
            return updated
    if text.endswith(" sleeping state") and (found := _SLEEPING.match(text)):  # printed by the queue and by the server
        return replace(known, sleeping=found.group(1) == "entering", prompt_cache=None)
    if "type" in text and (updated := _kind(known, text)) is not None:
        return updated
    if "build" in text and (found := _BUILD.match(text)):
        info, number, commit = found.groups()
        return replace(known, build=info or f"b{number}-{commit}")
    return None
