"""Pictures for notebooks, PNG files and reports, drawn without pyplot, which keeps state."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatel.errors import ExploreError, install_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1b1f24", "#67707b", "#d9dee4"
GROUPS = ("#2f6db5", "#d9822b", "#3a9a5b", "#a854a8", "#c44e52", "#2aa3a3", "#8c6d31", "#6b6ecf")
"""Colours of KV groups, in turn."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A matplotlib figure with a caption."""

    figure: Figure
    caption: str
    name: str
    """Its file name without an extension."""

    def png(self) -> bytes:
        """The picture as PNG."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=130, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()

    def save(self, path: Path | str | None = None) -> Path:
        """Write the PNG; into a folder under its own name, by default into the current one."""
        target = Path(path or ".")
        if target.is_dir():
            target = target / f"{self.name}.png"
        target.write_bytes(self.png())
        return target

    def html(self) -> str:
        """An ``img`` that holds its data."""
        from html import escape

        data = base64.b64encode(self.png()).decode()
        return f'<img alt="{escape(self.caption, quote=True)}" src="data:image/png;base64,{data}">'

    def _repr_png_(self) -> bytes:
        """The representation in a notebook."""
        return self.png()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. Raises ExploreError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ExploreError(f"pictures need matplotlib: {install_command('explore')}") from None
    return Figure(figsize=(width, height), layout="constrained")


def quiet(axes: Any) -> None:
    """Plain axes."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)


def shown(text: str, longest: int = 12) -> str:
    """A token on an axis: blanks and control characters visible, short, and no mathematics."""
    seen = "".join(letter if letter.isprintable() else "·" for letter in text.replace("\n", "↵"))
    seen = seen.strip() or "␣"
    return (seen if len(seen) <= longest else seen[: longest - 1] + "…").replace("$", r"\$")
