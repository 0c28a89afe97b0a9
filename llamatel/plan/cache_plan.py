"""Computes what llama.cpp allocates for keys, values and states, to the byte: one function per kind of cache.

Source: llama.cpp of October 2026: ``create_memory`` (src/llama-model.cpp:2355), ``src/llama-kv-cache*.cpp``,
``src/llama-memory-*.cpp``. ``make verify`` compares every kind with the tensors of a running llama-server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llamatel.flags.cache_types import CACHE_TYPES, CacheType
from llamatel.flags.server_settings import Cells, ServerSettings, padded, resolve
from llamatel.plan.model_shape import LayerShape, ModelShape
from llamatel.plan.refusals import refusal
from llamatel.plan.verified import in_words
from llamatel.providers import HtmlRepresentation

Kind = Literal["global", "window", "latent", "indexer", "recurrent", "compressed", "state"]

_CSA, _HCA = 4, 128
"""DeepSeek-V4's compression ratios (src/llama-kv-cache-dsv4.cpp)."""


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """Bytes of one layer's tensors in one cache."""

    layer: int
    k: int = 0
    v: int = 0
    r: int = 0
    s: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """All columns."""
        return self.k + self.v + self.r + self.s + self.other


@dataclass(frozen=True, slots=True)
class CachePart:
    """One cache: layers of the same kind."""

    kind: Kind
    cells: int
    """Tokens that each stream holds; for recurrent states, one per sequence."""
    streams: int
    layers: tuple[LayerBytes, ...]
    drafting: bool = False
    """Whether it belongs to the second context, which drafts."""
    separate: bool = False
    """Whether it belongs to a second model."""

    def bytes_of(self, column: str) -> int:
        """Bytes of a column: k, v, r, s or other."""
        return sum(getattr(layer, column) for layer in self.layers)

    @property
    def total_bytes(self) -> int:
        """All columns of all layers."""
        return sum(layer.total for layer in self.layers)


@dataclass(frozen=True, slots=True)
class CachePlan(HtmlRepresentation):
    """All caches of a server, in bytes, over all its contexts. ``parts`` is empty if it is ``refused``."""

    cells: Cells | None
    parts: tuple[CachePart, ...] = ()
    refused: str | None = None
    """llama-server's message if it does not start with these settings."""
    exact: bool = False
    why_not_exact: str | None = None
    verified_with: str | None = None
    """The llama.cpp builds compared with these bytes; None if none was."""

    def bytes_of(self, column: str) -> int:
        """Bytes of a column: k, v, r, s or other."""
        return sum(part.bytes_of(column) for part in self.parts)

    @property
    def total_bytes(self) -> int:
        """All columns of all layers."""
        return sum(part.total_bytes for part in self.parts)

    def by_layer(self, layers: int, *, separate: bool = False) -> list[int]:
        """Bytes of each layer of the model, or of the ``separate`` draft model, on all devices."""
        sizes = [0] * layers
        for part in self.parts:
            for layer in part.layers if part.separate is separate else ():
                sizes[layer.layer] += layer.total
        return sizes


@dataclass(frozen=True, slots=True)
class _Context:
    """Parameters that all caches of one context share."""

    shape: ModelShape
    cells: Cells
    type_k: CacheType
    type_v: CacheType
    flash: bool
    swa_full: bool
    copies: int
    """States per sequence: 1, plus the number of drafted tokens if states can be rolled back."""


def cache_plan(shape: ModelShape, settings: ServerSettings) -> CachePlan:
    """The caches of a llama-server with these settings, and with ``shape.draft`` if there is one.

    Does not raise for any model; unknown values make the plan inexact.
    """
    if shape.draft is not None and not settings.spec_types:
        settings = replace(settings, spec_types=shape.draft.drafts_as)
    build = None if shape.build is None else shape.build.number
    cells = resolve(settings, shape.context_length, causal=shape.causal, build=build)
    if cells is None:
        return CachePlan(None, why_not_exact="the model's context length is not known: name one with -c")
    refused = refusal(shape, settings)
    parts = _parts(_context(shape, settings, cells, settings.copies if shape.rollback else 1), _KINDS[shape.cache])
    drafter = shape.draft or (shape if settings.drafting else None)
    if drafter is not None and refused is None:
        second = draft_settings(settings, cells)
        refused = refusal(drafter, second, drafting=settings.drafting, alone=False)
        context = _context(drafter, second, resolve(second, None, causal=drafter.causal) or cells, 1)
        found = _parts(context, _draft if settings.drafting else _KINDS[drafter.cache])
        parts += [replace(part, drafting=True, separate=shape.draft is not None) for part in found]
    if refused is not None:
        return CachePlan(cells, refused=refused)
    why = _doubt(shape, settings)
    verified_with = f"llama.cpp {in_words(shape.verified_builds)}" if shape.verified_builds else None
    return CachePlan(cells, tuple(parts), exact=why is None, why_not_exact=why, verified_with=verified_with)


_RESOLUTION_BYTES = 10486
"""llama.cpp's log is rounded to 0.01 MiB a line."""
_LINES = 4
"""Most lines for one cache: its devices and the host."""


def plan_error(plan: CachePlan, reported: Mapping[str, int]) -> int:
    """Reported minus planned bytes; 0 if the difference may be the rounding of llama.cpp's log.

    ``reported`` are bytes by part, as in ``KvCacheState``.
    """
    total = sum(reported.values())
    error = total - plan.total_bytes
    return error if abs(error) > max(_RESOLUTION_BYTES * _LINES * len(plan.parts), total // 1000) else 0


def draft_settings(settings: ServerSettings, cells: Cells) -> ServerSettings:
    """The settings of the drafting context: as many tokens as the first, and its own cache types.

    Source: common_base_params_to_speculative and common_speculative_init_result (common/speculative.cpp:2446, 2511).
    """
    layers = settings.gpu_layers if settings.draft_model is None else settings.draft_gpu_layers
    return replace(
        settings,
        ctx_size=cells.context,
        kv_unified_per_slot=None,
        cache_type_k=settings.draft_cache_type_k,
        cache_type_v=settings.draft_cache_type_v,
        ubatch_size=settings.draft_ubatch_size or settings.ubatch_size,
        gpu_layers=layers,
        tensor_overrides=settings.draft_tensor_overrides,
        devices=settings.draft_devices or settings.devices,
        split_mode="layer" if len(settings.draft_devices) == 1 else settings.split_mode,
        moe_cache_mib=0,
        spec_types=(),
    )


def _context(shape: ModelShape, settings: ServerSettings, cells: Cells, copies: int) -> _Context:
    types = CACHE_TYPES[settings.cache_type_k], CACHE_TYPES[settings.cache_type_v]
    flash = shape.flash_attention and settings.flash_attn != "off"
    return _Context(shape, cells, *types, flash, settings.swa_full, copies)


def _parts(context: _Context, build: Callable[[_Context], Iterator[CachePart]]) -> list[CachePart]:
    return [part for part in build(context) if part.layers]


def _doubt(shape: ModelShape, settings: ServerSettings) -> str | None:
    """Why the sizes may differ from llama.cpp's allocations; None if there is no reason."""
    if shape.unknown:
        return "; ".join(shape.unknown)
    if not shape.verified:
        compared = in_words(shape.verified_builds)
        if not compared:
            return f"the sizes of architecture '{shape.architecture}' were not compared with llama.cpp's"
        other = "the newest was not" if shape.build is None else f"this is {shape.build}"
        return f"the sizes were compared with llama.cpp {compared}; {other}"
    if settings.not_understood:
        return f"what {', '.join(settings.not_understood)} means is not known"
    if settings.draft_model is not None and shape.draft is None:
        return "the model that drafts was not read: its cache comes on top"
    if shape.draft is not None and (why := _doubt(shape.draft, replace(settings, draft_model=None))) is not None:
        return f"the model that drafts: {why}"
    if settings.split_mode == "tensor":
        return "split mode 'tensor' was not compared"
    if settings.drafting and shape.cache == "compressed":
        return "drafting with DeepSeek-V4's own blocks was not compared: llama.cpp crashes there"
    if settings.fit and settings.ctx_size is None and not settings.kv_unified_per_slot:
        return "without -c llama-server lowers the context to what fits; this is its full length"
    return None


def _v_width(context: _Context, layer: LayerShape, width: Callable[[LayerShape], int]) -> int:
    """Values of V in one cell: without flash attention V is transposed, and all layers are as wide as the widest."""
    return width(layer) if context.flash else max(map(width, context.shape.layers))


def _attention(
    context: _Context, layers: Iterable[LayerShape], kind: Kind, cells: int, streams: int | None = None
) -> CachePart:
    """Keys and values of every KV head, or one latent key (src/llama-kv-cache.cpp:165)."""
    number = cells * (context.cells.streams if streams is None else streams)
    k_only = (context.shape.latent and not context.shape.latent_values) or context.shape.cache == "compressed"
    sizes = tuple(
        LayerBytes(
            layer.index,
            k=context.type_k.row_bytes(layer.key_width) * number,
            v=0
            if k_only
            else context.type_v.row_bytes(_v_width(context, layer, lambda each: each.value_width)) * number,
        )
        for layer in layers
        if layer.kv_from is None
    )
    return CachePart(kind, cells, context.cells.streams if streams is None else streams, sizes)


def _window_cells(context: _Context, window: int, *, unified: bool) -> int:
    """Cells of a sliding window's cache (src/llama-kv-cache-iswa.cpp:67): one window per slot that shares it."""
    if context.swa_full:
        return context.cells.per_stream
    slots = context.cells.slots if unified else 1
    return padded(min(context.cells.per_stream, window * slots + context.cells.ubatch))


def _attention_by_window(context: _Context, layers: Sequence[LayerShape]) -> Iterator[CachePart]:
    """One cache for layers with a window, another for the rest."""
    dense = [layer for layer in layers if layer.window is None]
    yield _attention(context, dense, "latent" if context.shape.latent else "global", context.cells.per_stream)
    windowed = [layer for layer in layers if layer.window is not None]
    if windowed:
        cells = _window_cells(context, windowed[0].window or 0, unified=context.cells.streams == 1)
        yield _attention(context, windowed, "window", cells)


def _indexer(context: _Context, layers: Iterable[LayerShape]) -> CachePart:
    """Keys of sparse attention's indexer, one head (src/llama-kv-cache-dsa.cpp:44, llama-kv-cache-msa.cpp:34).

    If the model is neither latent nor a hybrid, an unused V is allocated with them.
    """
    number = context.cells.per_stream * context.cells.streams
    with_v = not context.shape.latent and context.shape.cache == "attention"
    sizes = tuple(
        LayerBytes(
            layer.index,
            k=context.type_k.row_bytes(layer.indexer_length) * number,
            v=context.type_v.row_bytes(_v_width(context, layer, lambda each: each.value_length)) * number
            if with_v
            else 0,
        )
        for layer in layers
        if layer.indexer_length is not None
    )
    return CachePart("indexer", context.cells.per_stream, context.cells.streams, sizes)


def _recurrent(context: _Context) -> CachePart:
    """Recurrent states, always 32-bit floats, for every slot (src/llama-memory-recurrent.cpp:77)."""
    rows = max(1, context.cells.slots) * context.copies
    sizes = tuple(
        LayerBytes(
            layer.index,
            r=4 * layer.state.conv * rows,
            s=4 * layer.state.state * rows,
            other=4 * layer.state.history * rows,
        )
        for layer in context.shape.layers
        if layer.state is not None
    )
    return CachePart("recurrent", 1, rows, sizes)


def _compressed(context: _Context) -> Iterator[CachePart]:
    """DeepSeek-V4 (src/llama-kv-cache-dsv4.cpp:1215): every slot has its own streams, even with one pool."""
    slots, cells = context.cells.slots, context.cells.per_stream
    layers = context.shape.layers
    window = next((layer.window for layer in layers if layer.window), 0)
    yield _attention(context, layers, "window", _window_cells(context, window, unified=False), slots)
    by_ratio = {ratio: [layer for layer in layers if layer.compress_ratio == ratio] for ratio in (_CSA, _HCA)}
    for ratio, some in by_ratio.items():
        yield _attention(context, some, "compressed", padded(max(1, -(-cells // ratio))), slots)
    keys = padded(max(1, -(-cells // _CSA)))
    sizes = tuple(
        LayerBytes(layer.index, k=context.type_k.row_bytes(layer.indexer_length) * keys * slots)
        for layer in by_ratio[_CSA]
        if layer.indexer_length is not None
    )
    yield CachePart("indexer", keys, slots, sizes)
    states = []
    for layer in context.shape.trunk:
        values = 0
        if layer.compress_ratio == _CSA:
            values = 2 * _CSA * 2 * (layer.key_length + (layer.indexer_length or 0))
        elif layer.compress_ratio == _HCA:
            values = _HCA * layer.key_length
        if values:
            states.append(LayerBytes(layer.index, other=2 * 4 * values * slots * context.copies))
    yield CachePart("state", 1, slots * context.copies, tuple(states))


def _attention_caches(context: _Context) -> Iterator[CachePart]:
    cached = [layer for layer in context.shape.layers if layer.cached]
    yield from _attention_by_window(context, cached)
    yield _indexer(context, cached if context.shape.drafting_keeps_all else context.shape.trunk)


def _hybrid(context: _Context) -> Iterator[CachePart]:
    yield from _attention_caches(context)
    yield _recurrent(context)


_KINDS: dict[str, Callable[[_Context], Iterator[CachePart]]] = {
    "attention": _attention_caches,
    "recurrent": lambda context: iter((_recurrent(context),)),
    "hybrid": _hybrid,
    "compressed": _compressed,
    "none": lambda _: iter(()),
}


def _draft(context: _Context) -> Iterator[CachePart]:
    """The second context, of the drafting blocks: plain attention (src/llama-model.cpp:2400, 2466, 2540, 2798)."""
    if context.shape.cache == "none":  # they read the other model's
        return
    if context.shape.cache == "compressed":  # these blocks keep keys and values like those of any other model
        context = replace(context, shape=replace(context.shape, cache="attention"))
    layers = context.shape.layers if context.shape.drafting_keeps_all else context.shape.drafting
    yield from _attention_by_window(context, layers)  # all of them, where there is no trunk
    if context.shape.cache == "hybrid" or context.shape.drafting_keeps_all:
        yield _indexer(context, layers)
