"""Shows why a KV cache works and what it saves: unchanged rows, and the time per token with and without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamatel.errors import UsageError
from llamatel.explore.capture import Capture
from llamatel.explore.explore_child import Progress, capture
from llamatel.explore.explore_request import CaptureRequest
from llamatel.explore.picture import INK, Picture, new_figure, quiet


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Attention of the first ``tokens`` tokens alone, and with ``added`` more after them."""

    tokens: int
    added: int
    largest_difference: float
    """Of any weight in any head; a value above 0 is rounding."""
    largest_key_difference: float
    """Of any key, as a share of the largest."""
    on_later_tokens: float
    """The largest weight that an earlier row puts on an added token: 0."""


def unchanged(run: Capture, *, added: int = 4, progress: Progress | None = None, **how: Any) -> Unchanged:
    """Run the prompt of ``run`` again without its last tokens, and compare. ``how``: as for ``capture``."""
    import numpy as np

    kept = len(run.token_ids) - added
    if kept < 1 or run.rows.start != 0 or run.rows.stop < kept or not run.layers:
        raise UsageError("this needs a capture of all rows, of more tokens than are added")
    request = CaptureRequest(
        model=run.model,
        tokens=run.token_ids[:kept],
        layers=tuple(run.layers),
        cache_type=run.cache_type,
        **how,
    )
    shorter = capture(request, progress)
    weights = keys = later = 0.0
    for index, short in shorter.layers.items():
        whole = run.layer(index)
        if short.heads != whole.heads:
            raise UsageError("this needs a capture of all heads")
        weights = max(weights, float(np.abs(whole.weights[:, :kept, :kept] - short.weights).max()))
        most = max(float(np.abs(short.keys).max()), 1e-30)
        keys = max(keys, float(np.abs(whole.keys[:, :kept] - short.keys).max()) / most)
        later = max(later, float(np.abs(whole.weights[:, :kept, kept:]).max()))
    return Unchanged(kept, added, weights, keys, later)


def timing_picture(rows: Sequence[dict[str, float]], name: str) -> Picture:
    """Milliseconds for the next token by number of tokens before it, with and without a cache."""
    figure = new_figure(6.4, 3.1)
    axes: Any = figure.add_subplot()
    tokens = [row["tokens"] for row in rows]
    for key, colour, text in (
        ("without_cache_s", "#c44e52", "without: all tokens again"),
        ("with_cache_s", "#2f6db5", "with a KV cache"),
    ):
        times = [1000 * row[key] for row in rows]
        axes.plot(tokens, times, color=colour, marker="o", ms=4, lw=1.6, label=text)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens before it")
    axes.set_ylabel("ms for the next token")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    quiet(axes)
    axes.grid(axis="y", color="#eef1f4")
    axes.set_title(f"{name}: the next token, measured on this machine", fontsize=10, color=INK, loc="left")
    return Picture(figure, "Time for the next token with and without a KV cache", f"{name}_kv_cache")
