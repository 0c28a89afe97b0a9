"""The results of soaks as a table for docs/reliability.md and as a page: ``python -m tests.soak_page``."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "acceptance" / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"
_TABLE = re.compile(r"(?<=<!-- soaks -->\n).*?(?=<!-- end of soaks -->)", re.DOTALL)
_WIDTH, _HEIGHT = 640, 120


def results() -> list[dict[str, Any]]:
    """The soaks that were published."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("soak*.json"))]


def table(soaks: Sequence[dict[str, Any]]) -> str:
    """One line per soak and observer."""
    columns = (
        "seed", "minutes", "commit", "faults", "observer", "requests: clients / counter / Prometheus",
        "rows + lines lost", "spans exported / received / lost", "MiB after a quarter / at the end", "files", "",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for soak in soaks:
        figures = soak["figures"]
        for name in ("serve", "attach"):
            part = figures[name]
            requests, dropped = part["requests"], part["dropped"]
            spans_lost = sum(n for reason, n in dropped.items() if not reason.endswith(("jsonl_failed", "log_failed")))
            lines.append(
                f"| {figures['seed']} | {figures['seconds'] / 60:.0f} | {soak['commit']} | "
                f"{sum(figures['faults'].values())} | {name} | {requests['clients']:,} / {requests['counter']:,.0f} / "
                f"{requests['prometheus']:,.0f} | {requests['rows']:,} + {dropped.get('jsonl_failed', 0):,.0f} | "
                f"{part['spans_exported']:,.0f} / {part['spans_received']:,} / {spans_lost:,.0f} | "
                f"{part['memory_mib']['first']:.0f} / {part['memory_mib']['last']:.0f} | "
                f"{part['open_files']['first']} / {part['open_files']['last']} | "
                f"{'passed' if soak['passed'] else 'failed'} |"
            )
    return "\n".join(lines) + "\n"


def _chart(samples: Sequence[Sequence[float]], history: Sequence[tuple[float, str]]) -> str:
    end = max(at for at, _, _ in samples) or 1.0
    most = max(mib for _, mib, _ in samples)
    points = " ".join(f"{at / end * _WIDTH:.1f},{_HEIGHT - mib / most * _HEIGHT:.1f}" for at, mib, _ in samples)
    faults = "".join(
        f'<line x1="{at / end * _WIDTH:.1f}" x2="{at / end * _WIDTH:.1f}" y1="0" y2="{_HEIGHT}" stroke="#fbb">'
        f"<title>{at:.0f} s: {html.escape(name)}</title></line>"
        for at, name in history
    )
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="memory">{faults}'
        f'<polyline points="{points}" fill="none" stroke="#05c"/></svg><p>{most:.0f} MiB at most, {end:.0f} s</p>'
    )


def page(soaks: Sequence[dict[str, Any]]) -> str:
    """Memory over time with the faults, and all figures."""
    parts = ["<!doctype html><meta charset=utf-8><title>Soaks</title><h1>Soaks</h1>"]
    for soak in soaks:
        figures = soak["figures"]
        parts.append(f"<h2>Seed {figures['seed']}, {soak['date']}, {html.escape(str(soak['commit']))}</h2>")
        for name in ("serve", "attach"):
            parts.append(f"<h3>{name}: resident memory, and each fault</h3>")
            parts.append(_chart(figures[name]["samples"], figures["history"]))
        shown = {**figures, "history": None, **{one: {**figures[one], "samples": None} for one in ("serve", "attach")}}
        parts.append(f"<pre>{html.escape(json.dumps(shown, indent=1))}</pre>")
    return "\n".join(parts) + "\n"


def document_with(text: str, soaks: Sequence[dict[str, Any]]) -> str:
    """docs/reliability.md with the table of these soaks."""
    return _TABLE.sub(lambda _: table(soaks), text)


if __name__ == "__main__":
    found = [soak for soak in results() if soak["figures"]]
    DOCUMENT.write_text(document_with(DOCUMENT.read_text(encoding="utf-8"), found), encoding="utf-8")
    (RESULTS / "soak.html").write_text(page(found), encoding="utf-8")
