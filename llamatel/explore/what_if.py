"""The model's attention as MHA, GQA and MQA: parameters, cache, and bytes that a decoded token reads, by context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamatel.errors import UsageError
from llamatel.explore.picture import INK, Picture, new_figure, quiet
from llamatel.plan.attention_comparison import Variant
from llamatel.plan.model_report import ModelReport

CONTEXTS = (1024, 4096, 16384, 65536, 131072)
_BYTES_PER_VALUE = 2.0


@dataclass(frozen=True, slots=True)
class WhatIf:
    """One variant. Bytes are for an f16 cache, as if every layer kept all tokens, also layers with windows."""

    variant: Variant
    contexts: tuple[int, ...]
    cache_bytes: tuple[int, ...]
    """Bytes of the cache by context; one decoded token reads all of them."""
    read_bytes: tuple[int, ...] | None
    """Bytes of cache and weights that one decoded token reads, by context; None if the weights are unknown."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        v = self.variant
        return {
            "name": v.name, "own": v.own, "kv_heads": v.kv_heads, "kv_parameters": v.kv_parameters,
            "attention_parameters": v.attention_parameters, "contexts": list(self.contexts),
            "cache_bytes": list(self.cache_bytes),
            "read_bytes": None if self.read_bytes is None else list(self.read_bytes),
        }  # fmt: skip


def what_if(report: ModelReport) -> tuple[WhatIf, ...]:
    """All variants. Raises UsageError if the model's heads are unknown or not comparable."""
    found = report.comparison
    if not found:
        raise UsageError("this model's attention has no counterpart as MHA, GQA or MQA")
    weights = report.shape.weights if report.shape is not None else None
    own = next((variant for variant in found if variant.own), None)
    rows = []
    for variant in found:
        cached = tuple(int(variant.cache_bytes(_BYTES_PER_VALUE) * context) for context in CONTEXTS)
        read = None
        if weights is not None and own is not None and own.kv_parameters and variant.kv_parameters is not None:
            # K and V projections of another size, at the file's average bits for a parameter.
            per_parameter = weights.n_bytes / weights.parameters
            more = (variant.kv_parameters - own.kv_parameters) * per_parameter
            read = tuple(int(weights.active_bytes + more) + each for each in cached)
        rows.append(WhatIf(variant, CONTEXTS, cached, read))
    return tuple(rows)


def what_if_picture(rows: Sequence[WhatIf], name: str) -> Picture:
    """The cache over the context, a line for each variant; the model's own is the thick one."""
    figure = new_figure(6.4, 3.3)
    axes: Any = figure.add_subplot()
    for number, row in enumerate(rows):
        own = row.variant.own
        sizes = [each / 2**20 for each in row.cache_bytes]
        colour = "#c44e52" if own else f"{0.25 + 0.5 * number / max(len(rows) - 1, 1):.2f}"
        label = f"{row.variant.name}{' (the model)' if own else ''}"
        axes.plot(row.contexts, sizes, color=colour, lw=2.6 if own else 1.3, marker="o", ms=3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(rows[0].contexts, [f"{context // 1024} Ki" for context in rows[0].contexts])
    ticks = [tick for tick in axes.get_yticks() if tick > 0]
    axes.set_yticks(ticks, [_size(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("KV cache, f16")
    axes.legend(frameon=False, fontsize=8)
    quiet(axes)
    axes.grid(color="#eef1f4")
    axes.set_title(f"{name}: the cache, had its heads been shared otherwise", fontsize=10, color=INK, loc="left")
    return Picture(figure, "KV cache by context as MHA, GQA and MQA", f"{name}_what_if")


def _size(mib: float) -> str:
    from llamatel.ui.view.text_page import size

    return size(mib * 2**20)
