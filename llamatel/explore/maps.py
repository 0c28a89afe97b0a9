"""Pictures of attention: one head, all heads of a layer, and the kinds of all heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llamatel.errors import UsageError
from llamatel.explore.capture import Capture
from llamatel.explore.heads import KINDS, HeadScores
from llamatel.explore.picture import GRID, GROUPS, INK, MUTED, Picture, new_figure, quiet, shown

_MAP = "Blues"
_LABELLED = 48
"""Most tokens with a label on an axis."""
_KIND_COLOURS = {
    "induction": "#c44e52", "previous": "#2f6db5", "current": "#2aa3a3", "first": "#d9822b", "sink": "#8c6d31",
    "local": "#3a9a5b", "uniform": "#b9c1ca", "mixed": "#e6eaee",
}  # fmt: skip


def head_picture(run: Capture, layer: int, head: int) -> Picture:
    """One head: rows are the attending tokens, columns the attended ones."""
    found = run.layer(layer)
    weights = found.head(head)
    labelled = len(run.token_ids) <= _LABELLED
    side = min(max(3.5, 0.21 * len(run.token_ids)), 9.0)
    figure = new_figure(side + 1.6, max(side * len(run.rows) / len(run.token_ids), 1.6) + 0.8)
    axes: Any = figure.add_subplot()
    image = axes.imshow(weights, cmap=_MAP, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    texts = [shown(text) for text in run.texts]
    if labelled:
        axes.set_xticks(range(len(texts)), texts, rotation=90)
        axes.set_yticks(range(len(run.rows)), [texts[position] for position in run.rows])
    else:
        axes.set_xlabel("looks at position")
        axes.set_ylabel("row" if run.rows.start == 0 else f"row, from position {run.rows.start}")
    quiet(axes)
    if labelled:
        axes.tick_params(labelsize=7)
    axes.set_title(f"layer {layer}, head {head} (KV head {found.kv_head(head)})", fontsize=10, color=INK, loc="left")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02)
    bar.ax.tick_params(labelsize=7, colors=MUTED, length=0)
    bar.set_label("share of attention", size=8, color=MUTED)
    bar.outline.set_visible(False)
    return Picture(figure, f"Attention of layer {layer}, head {head}", f"{run.name}_layer_{layer}_head_{head}")


def attention_picture(run: Capture, layer: int, scores: Sequence[HeadScores] = ()) -> Picture:
    """All captured heads of a layer, a row of maps for each KV head. ``scores`` name what each does."""
    found = run.layer(layer)
    groups = sorted({found.kv_head(head) for head in found.heads})
    most = max(sum(found.kv_head(head) == group for head in found.heads) for group in groups)
    columns = min(most, 8)
    lines = {group: math.ceil(sum(found.kv_head(h) == group for h in found.heads) / columns) for group in groups}
    height = sum(lines.values())
    figure = new_figure(1.75 * columns + 0.5, 1.95 * height + 0.4)
    kinds = {score.head: score.kind for score in scores if score.layer == layer}
    begin = 0
    for group in groups:
        mine = [head for head in found.heads if found.kv_head(head) == group]
        for place, head in enumerate(mine):
            axes: Any = figure.add_subplot(height, columns, begin * columns + place + 1)
            axes.imshow(found.head(head), cmap=_MAP, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            colour = GROUPS[group % len(GROUPS)]
            for spine in axes.spines.values():
                spine.set_color(colour)
                spine.set_linewidth(1.4)
            kind = f"  {kinds[head]}" if head in kinds else ""
            axes.set_title(f"head {head}{kind}", fontsize=8, color=INK, loc="left")
            if place % columns == 0:
                axes.set_ylabel(f"KV head {group}", fontsize=8, color=colour)
        begin += lines[group]
    figure.suptitle(f"{run.name}, layer {layer}: a frame's colour is the KV head that its head reads", fontsize=9)
    return Picture(figure, f"Attention of all heads of layer {layer}", f"{run.name}_layer_{layer}_attention")


def overview_picture(run: Capture, scores: Sequence[HeadScores]) -> Picture:
    """Layers × heads: the kind of each head, and its score."""
    if not scores:
        raise UsageError("there is no layer with an attention map")
    layers = sorted({score.layer for score in scores})
    heads = 1 + max(score.head for score in scores)
    figure = new_figure(max(0.78 * heads, 5.0) + 0.9, 0.5 * len(layers) + 1.5)
    axes: Any = figure.add_subplot()
    from matplotlib.patches import Patch, Rectangle

    narrow = heads > 16
    for score in scores:
        at = layers.index(score.layer)
        axes.add_patch(Rectangle((score.head - 0.48, at - 0.46), 0.96, 0.92, color=_KIND_COLOURS[score.kind], lw=0))
        value = getattr(score, score.kind, None)
        if value is not None and not narrow:
            pale = score.kind in ("uniform", "mixed")
            axes.text(score.head, at, f"{value:.2f}", ha="center", va="center", fontsize=8, color=INK if pale else "w")
    axes.set_xlim(-0.6, heads - 0.4)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xticks(range(0, heads, 4 if narrow else 1))
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    quiet(axes)
    there = [kind for kind in KINDS if any(score.kind == kind for score in scores)]
    figure.legend(
        handles=[Patch(color=_KIND_COLOURS[kind], label=f"{kind}: {KINDS[kind]}") for kind in there],
        loc="outside lower left", fontsize=7.5, frameon=False, ncols=2,
    )  # fmt: skip
    return Picture(figure, "What each head does, by layer and head", f"{run.name}_heads")


def scores_picture(run: Capture, scores: Sequence[HeadScores]) -> Picture:
    """The scores of the overview: a map each of layers × heads."""
    import numpy as np

    names = [name for name in ("previous", "induction", "first", "current", "local", "uniform", "sink")
             if any(getattr(score, name) for score in scores)]  # fmt: skip
    layers = sorted({score.layer for score in scores})
    heads = 1 + max((score.head for score in scores), default=0)
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = new_figure(3.1 * columns, lines * (0.9 + min(0.28 * len(layers), 4.0)))
    for place, name in enumerate(names):
        grid = np.full((len(layers), heads), np.nan)
        for score in scores:
            value = getattr(score, name)
            grid[layers.index(score.layer), score.head] = np.nan if value is None else value
        axes: Any = figure.add_subplot(lines, columns, place + 1)
        axes.imshow(grid, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_title(f"{name} (most: {np.nanmax(grid):.2f})", fontsize=9, color=INK, loc="left")
        axes.set_yticks(range(len(layers)) if len(layers) <= 12 else range(0, len(layers), 4))
        axes.set_xticks(range(heads) if heads <= 12 else range(0, heads, 4))
        quiet(axes)
        axes.tick_params(labelsize=7)
        for spine in axes.spines.values():
            spine.set_color(GRID)
    figure.supxlabel("head", fontsize=8, color=MUTED)
    figure.supylabel("layer", fontsize=8, color=MUTED)
    return Picture(figure, "Scores of each head, by layer and head; 0 dark, 1 light", f"{run.name}_head_scores")
