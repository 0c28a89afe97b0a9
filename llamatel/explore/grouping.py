"""Pictures of grouped attention: which query heads read which KV head, and the keys that they read."""

from __future__ import annotations

from typing import Any, Literal

from llamatel.errors import UsageError
from llamatel.explore.capture import Capture
from llamatel.explore.picture import GROUPS, INK, MUTED, Picture, new_figure, quiet, shown
from llamatel.plan.attention_kind import attention_summary
from llamatel.plan.model_shape import ModelShape

_DIMENSIONS = 20
_WIDEST = 64


def grouping_picture(shape: ModelShape, layer: int | None = None, name: str | None = None) -> Picture:
    """Query heads above, KV heads below, joined: for one layer, by default the first that attends.

    ``name`` is the file's, in the picture's own file name; by default the architecture's.
    """
    attending = [each for each in shape.trunk if each.attends and each.heads and each.kv_heads]
    chosen = [each for each in attending if layer is None or each.index == layer]
    if not chosen:
        raise UsageError("there is no such layer that attends" if layer is not None else "no layer attends")
    found = chosen[0]
    heads, kv_heads = found.heads or 0, found.kv_heads
    figure = new_figure(min(max(0.5 * heads, 4.5), 14), 2.3)
    axes: Any = figure.add_subplot()
    for head in range(heads):
        group = head * kv_heads // heads
        colour = GROUPS[group % len(GROUPS)]
        below = (group + 0.5) * heads / kv_heads - 0.5
        axes.plot([head, below], [0.88, 0.12], color=colour, lw=1.2, alpha=0.7, zorder=1)
        axes.scatter([head], [1], s=230 if heads <= _WIDEST // 2 else 40, color=colour, zorder=2)
        if heads <= _WIDEST // 2:
            axes.text(head, 1, str(head), ha="center", va="center", color="white", fontsize=8)
    for group in range(kv_heads):
        below = (group + 0.5) * heads / kv_heads - 0.5
        axes.scatter([below], [0], s=330 if kv_heads <= _WIDEST // 2 else 40, marker="s",
                     color=GROUPS[group % len(GROUPS)], zorder=2)  # fmt: skip
        if kv_heads <= _WIDEST // 2:
            axes.text(below, 0, str(group), ha="center", va="center", color="white", fontsize=9)
    axes.set_yticks([0, 1], [f"{kv_heads} KV heads", f"{heads} query heads"])
    axes.set_xticks([])
    axes.set_ylim(-0.35, 1.35)
    axes.set_xlim(-0.8, heads - 0.2)
    quiet(axes)
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"{shape.name or shape.architecture}, layer {found.index}: {attention_summary(shape)}", fontsize=9, color=INK
    )
    return Picture(figure, "Which query heads read which KV head", f"{name or shape.architecture}_grouping")


def keys_picture(
    run: Capture, layer: int = 0, *, token: int = 0, what: Literal["keys", "queries", "values"] = "keys"
) -> Picture:
    """Keys by KV group: rows are KV groups, columns their query heads.

    Each cell shows the first 20 dimensions of the key of one token (by default the first). Within a row the key is the
    same, as it is shared. ``what``: keys, values (also shared) or queries (one per head).
    """
    import numpy as np

    found = run.layer(layer)
    if what == "queries" and token not in run.rows:
        raise UsageError(f"the query of token {token} was not captured: rows are {run.rows.start}-{run.rows.stop}")
    if not 0 <= token < len(run.token_ids):
        raise UsageError(f"there are tokens 0 to {len(run.token_ids) - 1}, not {token}")
    groups, size = found.kv_heads, found.group_size
    columns = min(size, 16)

    def vector(head: int) -> Any:
        if what == "queries":
            return found.queries[found.heads.index(head), token - run.rows.start, :_DIMENSIONS]
        return getattr(found, what)[found.kv_head(head), token, :_DIMENSIONS]

    cells = {
        (group, place): vector(group * size + place)
        for group in range(groups)
        for place in range(columns)
        if what != "queries" or group * size + place in found.heads
    }
    limit = max((float(np.abs(cell).max()) for cell in cells.values()), default=1.0) or 1.0
    figure = new_figure(max(1.9 * columns, 5.0) + 0.9, 0.72 * groups + 1.1)
    grid: Any = figure.subplots(groups, columns, squeeze=False)
    image: Any = None
    for group in range(groups):
        for place in range(columns):
            axes = grid[group][place]
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color(GROUPS[group % len(GROUPS)])
            if (group, place) in cells:
                image = axes.imshow(cells[group, place][None], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
            axes.set_title(f"query head {group * size + place}", fontsize=7, color=MUTED, pad=2)
        grid[group][0].set_ylabel(f"KV {group}", fontsize=8, color=GROUPS[group % len(GROUPS)])
    if image is not None:
        bar = figure.colorbar(image, ax=grid, shrink=0.8, pad=0.01)
        bar.ax.tick_params(labelsize=7, colors=MUTED, length=0)
        bar.outline.set_visible(False)
    length = min(_DIMENSIONS, getattr(found, what).shape[2])
    figure.suptitle(
        f"{run.name}, layer {layer}: {what} of token {token} ({shown(run.texts[token])}), first {length} dimensions",
        fontsize=9, color=INK,
    )  # fmt: skip
    return Picture(figure, f"{what.capitalize()} by KV group, layer {layer}", f"{run.name}_layer_{layer}_gqa_{what}")
