"""The report: one self-contained HTML file, pictures included, that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from llamatel.errors import UsageError
from llamatel.explore.cache_picture import Unchanged, timing_picture, unchanged
from llamatel.explore.capture import Capture
from llamatel.explore.explore_child import Progress, capture, timings
from llamatel.explore.explore_request import CaptureRequest
from llamatel.explore.grouping import grouping_picture, keys_picture
from llamatel.explore.heads import KINDS, HeadScores, head_scores
from llamatel.explore.maps import attention_picture, head_picture, overview_picture, scores_picture
from llamatel.explore.matrices import Matrix, matrices, spectra_picture
from llamatel.explore.what_if import WhatIf, what_if, what_if_picture
from llamatel.plan.model_report import ModelReport
from llamatel.ui.view.html import model_html
from llamatel.ui.view.text_page import parameters, printable, size

_STYLE = """
body { font: 15px/1.55 system-ui, sans-serif; color: #1b1f24; max-width: 62rem; margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem }
p { max-width: 46rem } .muted { color: #67707b } img { max-width: 100%; height: auto; display: block; margin: .8rem 0 }
table { border-collapse: collapse; font-size: 13px; margin: .8rem 0 }
th, td { text-align: right; padding: .2rem .7rem; border-bottom: 1px solid #e6eaee; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left } th { color: #67707b; font-weight: 500 }
tr.own td { font-weight: 600 } code { background: #f3f5f7; padding: .1rem .3rem; border-radius: 3px }
details { margin: .5rem 0 } summary { cursor: pointer; color: #2f6db5 }
"""
_MOST_LAYERS = 4
"""Layers with a picture by default."""


@dataclass(frozen=True, slots=True)
class Report:
    """All results for one model. Parts that do not apply to the model are None or empty, with ``notes``."""

    model: ModelReport
    run: Capture
    probe: Capture
    scores: tuple[HeadScores, ...]
    same: Unchanged | None
    times: tuple[dict[str, float], ...]
    matrices: tuple[Matrix, ...]
    variants: tuple[WhatIf, ...]
    notes: tuple[str, ...] = ()

    def html(self) -> str:
        """The page."""
        title = printable(self.model.title)
        body = "".join(
            (self._head(title), self._structure(), self._heads(), self._attention(), self._keys(), self._matrices(),
             self._cache(), self._what_if(), self._notes())
        )  # fmt: skip
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}: attention</title>'
            f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
        )

    def _head(self, title: str) -> str:
        run = self.run
        return (
            f"<h1>{escape(title)}</h1><p class=muted>What llama.cpp computes when it runs this file: "
            f"{escape(run.llama_cpp)}, flash attention off, keys and values in {escape(run.cache_type)}. "
            f"Attention, keys and times are measured, matrices read from the file; only what-if is arithmetic.</p>"
        )

    def _structure(self) -> str:
        shape = self.model.shape
        try:
            picture = grouping_picture(shape).html() if shape is not None else ""
        except UsageError as error:
            picture = f"<p>{escape(str(error))}</p>"
        return f"<h2>Structure</h2>{picture}{model_html(self.model)}"

    def _heads(self) -> str:
        if not self.scores:
            return ""
        counts = {kind: sum(score.kind == kind for score in self.scores) for kind in KINDS}
        kinds = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
        half = (len(self.probe.token_ids)) // 2
        return (
            f"<h2>What the heads do</h2><p>Measured on {half} random tokens, twice over: what the second turn looks at "
            f"can only come from the first. A number is the head's score for its kind, a share of its attention. "
            f"Of {len(self.scores)} heads: {kinds}.</p>"
            f"{overview_picture(self.probe, self.scores).html()}"
            f"{_folded('All scores', scores_picture(self.probe, self.scores).html() + _scores_table(self.scores))}"
            f"{self._best()}"
        )

    def _best(self) -> str:
        """The strongest head of each characteristic kind, as a map."""
        parts = []
        for kind in ("previous", "induction"):
            mine = [score for score in self.scores if score.kind == kind]
            if mine:
                best = max(mine, key=lambda score: getattr(score, kind) or 0.0)
                picture = head_picture(self.probe, best.layer, best.head).html()
                parts.append(_folded(f"The strongest {kind} head: it {KINDS[kind]}", picture))
        return "".join(parts)

    def _attention(self) -> str:
        run = self.run
        if not run.layers:
            return ""
        prompt = "".join(run.texts[: run.prompt_tokens])
        added = f", to which it added <code>{escape(printable(run.generated))}</code>" if run.generated else ""
        pictures = "".join(
            _folded(f"Layer {layer}", attention_picture(run, layer, self.scores).html(), is_open=number == 0)
            for number, layer in enumerate(list(run.layers)[:_MOST_LAYERS])
        )
        return (
            f"<h2>Attention</h2><p>The prompt: <code>{escape(printable(prompt, 400))}</code>{added}. Rows look at "
            f"columns; the upper right is empty, because no token sees a later one.</p>{pictures}"
        )

    def _keys(self) -> str:
        if not self.run.layers:
            return ""
        layer = next(iter(self.run.layers))
        return (
            "<h2>Keys by group</h2><p>Each row is a KV head, each column a query head that reads it. Within a row it "
            f"is the same key: that is what a group shares, and why its cache is smaller.</p>"
            f"{keys_picture(self.run, layer).html()}"
            + (_folded("Queries, each head's own", keys_picture(self.run, layer, what="queries").html())
               if 0 in self.run.rows else "")
            + _folded("Values", keys_picture(self.run, layer, what="values").html())
        )  # fmt: skip

    def _matrices(self) -> str:
        if not self.matrices:
            return ""
        rows = [
            (m.name, m.role.upper(), f"{m.shape[0]} × {m.shape[1]}", m.type, size(m.n_bytes), f"{m.norm:.2f}",
             f"{float(m.spectrum[0]):.2f}", f"{m.effective_rank:.1f} of {min(m.shape)}")
            for m in self.matrices
        ]  # fmt: skip
        head = (
            "matrix",
            "role",
            "outputs × inputs",
            "type",
            "size",
            "norm",
            "largest singular value",
            "effective rank",
        )
        return (
            "<h2>Q, K, V and O</h2><p>Dequantised from the file. The effective rank is how many directions carry a "
            f"matrix.</p>{spectra_picture(self.matrices, self.run.name).html()}{_folded('All', _table(head, rows))}"
        )

    def _cache(self) -> str:
        if self.same is None and not self.times:
            return ""
        parts = ["<h2>Why a KV cache works</h2>"]
        if self.same is not None:
            s = self.same
            parts.append(
                f"<p>With {s.added} tokens added, the attention of the first {s.tokens} stayed as it was: the largest "
                f"difference of any weight is {s.largest_difference:.1e}, of any key {s.largest_key_difference:.1e} of "
                f"the largest, and the largest weight on an added token {s.on_later_tokens:.0f}. So keys and values of "
                f"earlier tokens can be kept; without a cache they are computed again for every token.</p>"
            )
        if self.times:
            parts.append(timing_picture(self.times, self.run.name).html())
            rows = [
                (f"{row['tokens']:.0f}", f"{1000 * row['with_cache_s']:.2f}", f"{1000 * row['without_cache_s']:.2f}",
                 f"{row['without_cache_s'] / row['with_cache_s']:.0f} times")
                for row in self.times
            ]  # fmt: skip
            parts.append(_folded("Figures", _table(("tokens before", "with, ms", "without, ms", "slower"), rows)))
        return "".join(parts)

    def _what_if(self) -> str:
        if not self.variants:
            return ""
        contexts = self.variants[0].contexts
        head = ("as", "KV heads", "K and V parameters", *(f"cache at {context:,}" for context in contexts))
        rows = [
            (v.variant.name, str(v.variant.kv_heads or "–"),
             parameters(v.variant.kv_parameters), *(size(each) for each in v.cache_bytes))
            for v in self.variants
        ]  # fmt: skip
        reads = [
            (v.variant.name, *(size(each) for each in v.read_bytes)) for v in self.variants if v.read_bytes is not None
        ]
        marked = [v.variant.own for v in self.variants]
        folded = _folded(
            "Bytes read for a decoded token, weights and cache",
            _table(("as", *(f"at {context:,}" for context in contexts)), reads),
        )
        return (
            "<h2>What if</h2><p>The same model, had its query heads shared their keys and values otherwise; f16 cache, "
            f"all layers keeping all tokens.</p>{what_if_picture(self.variants, self.run.name).html()}"
            f"{_table(head, rows, marked)}{folded if reads else ''}"
        )

    def _notes(self) -> str:
        notes = [*self.notes, *(f"Layer {layer} has no map: {why}." for layer, why in self.run.missing.items())]
        return f"<h2>Left out</h2><ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""


def make_report(
    model: ModelReport,
    request: CaptureRequest,
    *,
    longest: int = 256,
    progress: Progress | None = None,
) -> Report:
    """Capture, probe and measure. Missing parts are noted; ``longest`` 0 leaves out the timing."""
    notes: list[str] = []
    run = capture(request, progress)
    repeat = CaptureRequest(
        model=request.model, repeat=32, layers=request.layers, heads=request.heads, threads=request.threads,
        gpu_layers=request.gpu_layers, max_bytes=request.max_bytes,
    )  # fmt: skip
    probed = capture(repeat, progress)
    same = None
    try:
        same = unchanged(run, added=min(4, max(len(run.token_ids) // 2, 1)), progress=progress, threads=request.threads)
    except UsageError as error:
        notes.append(f"Whether earlier rows stay: {error}.")
    times: list[dict[str, float]] = []
    if longest:
        times = timings(
            request.model, longest=longest, threads=request.threads, gpu_layers=request.gpu_layers, progress=progress
        )
    found: tuple[Matrix, ...] = ()
    variants: tuple[WhatIf, ...] = ()
    layers = tuple(layer for layer in request.layers or () if layer in model.projections) or None
    try:
        found = tuple(matrices(model, layers, max_bytes=request.max_bytes, progress=progress))
    except UsageError as error:
        notes.append(f"Matrices: {error}.")
    try:
        variants = what_if(model)
    except UsageError as error:
        notes.append(f"What if: {error}.")
    return Report(model, run, probed, head_scores(probed), same, tuple(times), found, variants, tuple(notes))


def _folded(title: str, content: str, *, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{content}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    marks = [*marked, *[False] * (len(rows) - len(marked))]
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr{' class=own' if mark else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row, mark in zip(rows, marks, strict=True)
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _scores_table(scores: Sequence[HeadScores]) -> str:
    names = ("previous", "current", "first", "local", "induction", "uniform", "entropy_bits")
    rows = [
        (f"{s.layer}.{s.head}", s.kind, *("–" if getattr(s, n) is None else f"{getattr(s, n):.2f}" for n in names))
        for s in scores
    ]
    return _table(("layer.head", "kind", *(name.replace("_", " ") for name in names)), rows)
