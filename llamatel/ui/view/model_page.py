"""A model on a page of 80 columns: description, layers, tensors, or the models to choose from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from rich.text import Text

from llamatel.gguf.header import TensorInfo
from llamatel.gguf.model_choices import Choices
from llamatel.plan.attention_kind import attention_kind, attention_summary, meaning, state_bytes
from llamatel.plan.model_report import ModelReport
from llamatel.plan.model_shape import LayerShape, ModelShape, Rope
from llamatel.ui.view.glyphs import UNICODE, Glyphs
from llamatel.ui.view.text_page import (
    WIDTH,
    Page,
    Row,
    exact_bytes,
    parameters,
    printable,
    row_text,
    size,
    stacked,
    table_text,
)


def model_text(report: ModelReport, glyphs: Glyphs = UNICODE) -> Text:
    """The report, without a final newline."""
    text = Text(printable(report.title), "bold")
    for block in model_page(report, glyphs).blocks:
        text.append_text(row_text(block) if isinstance(block, Row) else table_text(block))
    return text


def model_page(report: ModelReport, glyphs: Glyphs = UNICODE) -> Page:
    """The report's contents, in order, for text and for HTML. Untrusted names in it are printable, not escaped."""
    page = Page(glyphs, [])
    _file(page, report)
    if report.shape is None:
        page.row("no model", printable(report.why_no_shape or "the file describes no model"))
        return page
    _attention(page, report.shape)
    _cache(page, report, report.shape)
    _body(page, report, report.shape)
    for sentence in report.shape.unknown:
        page.row("unknown", printable(sentence))
    _weights(page, report.shape)
    _comparison(page, report)
    return page


def _file(page: Page, report: ModelReport) -> None:
    header = report.header
    facts = []
    if header is not None:
        facts = [header.file_type] if header.file_type is not None else []
        facts.append(size(sum(header.file_sizes)))
        if len(header.files) > 1:
            facts.append(f"{len(header.files)} files")
        facts.append(f"GGUF {header.version}{', big-endian' if header.big_endian else ''}")
    page.row("file" if header is not None else "configuration", printable(report.name))
    if facts:
        page.row("", ", ".join(facts))
    if header is not None and header.missing_bytes:
        missing = size(header.missing_bytes)
        page.row("incomplete", f"{missing} of the tensors' data are missing: an interrupted download?")
    architecture = report.shape.architecture if report.shape is not None else header and header.architecture
    page.row("architecture", printable(architecture or page.glyphs.unknown))
    if report.parameters == 0:
        page.row("parameters", "none: a file without tensors, such as one with only a vocabulary")
    elif report.parameters is not None:
        facts = [parameters(report.parameters)]
        if report.active_parameters is not None:
            facts.append(f"{parameters(report.active_parameters)} of them for each token")
        if report.bits_per_weight is not None:
            facts.append(f"{report.bits_per_weight:.2f} bits each")
        page.row("parameters", ", ".join(facts))


def _attention(page: Page, shape: ModelShape) -> None:
    kind = attention_kind(shape)
    page.row("attention", attention_summary(shape) if kind is not None else page.glyphs.unknown)
    for sentence in meaning(shape):
        page.row("", sentence)
    attending = [layer for layer in shape.trunk if layer.attends]
    if attending:
        heads = _spread(layer.heads for layer in attending)
        lengths = f"{_spread(layer.key_length for layer in attending)} values a key"
        if not shape.latent:
            lengths += f", {_spread(layer.value_length for layer in attending)} a value"
        page.row("heads", f"{heads} query, {_spread(layer.kv_heads for layer in attending)} KV; {lengths}")
    layers = f"{len(shape.trunk)}"
    if len(attending) != len(shape.trunk):
        layers += f", {len(attending)} of them attend"
    if shape.drafting:
        layers += f"; and {len(shape.drafting)} for drafting"
    page.row("layers", layers)


def _cache(page: Page, report: ModelReport, shape: ModelShape) -> None:
    sizes = {kind: report.bytes_per_token(kind) for kind in ("f16", "q8_0", "q4_0")}
    f16 = sizes["f16"]
    if f16 is not None and f16.total:
        others = [f"{each.total:,} at {kind}" for kind, each in sizes.items() if each is not None and kind != "f16"]
        page.row("KV cache", f"{f16.total:,} bytes a token at f16" + (f" ({', '.join(others)})" if others else ""))
        if f16.windowed:
            page.row("", f"of which {f16.lasting:,} permanently, and {f16.windowed:,} only within the window")
    elif f16 is None:
        page.row("KV cache", "does not grow token by token, or is not known: see llamatel plan")
    if state_bytes(shape):
        page.row("state", f"{size(state_bytes(shape))} for each sequence")


def _body(page: Page, report: ModelReport, shape: ModelShape) -> None:
    width = [f"{shape.embedding_length:,}"] if shape.embedding_length else []
    if shape.feed_forward_length:
        width.append(f"feed-forward {shape.feed_forward_length:,}")
    if width:
        page.row("embedding", ", ".join(width))
    if shape.experts:
        used = f", {shape.experts_used} for each token" if shape.experts_used else ""
        page.row("experts", f"{shape.experts}{used}")
    if shape.context_length:
        page.row("context", f"{shape.context_length:,} tokens")
    if rope := _rope(shape.rope):
        page.row("rope", rope)
    tokenizer = report.tokenizer()
    facts = [f"{shape.vocabulary:,} tokens"] if shape.vocabulary else []
    facts += [printable(str(tokenizer[key])) for key in ("model", "pre") if tokenizer.get(key)]
    if tokenizer:
        facts.append("chat template" if tokenizer["chat_template"] else "no chat template")
    if facts:
        page.row("tokenizer", ", ".join(facts))


def _rope(rope: Rope) -> str:
    facts = [f"base {rope.base:,.10g}"] if rope.base else []
    if rope.base_windowed:
        facts.append(f"{rope.base_windowed:,.10g} within the window")
    if rope.dimensions:
        facts.append(f"{rope.dimensions} values of a head")
    if rope.scaling not in (None, "none"):
        scaled = f"scaled ({printable(rope.scaling)}"
        scaled += f", {rope.factor:g} times" if rope.factor else ""
        scaled += f" the {rope.original_context:,} tokens of its training" if rope.original_context else ""
        facts.append(f"{scaled})")
    return ", ".join(facts)


def _weights(page: Page, shape: ModelShape) -> None:
    weights = shape.weights
    if weights is None or not weights.parameters:
        return
    rows = [
        (
            part,
            parameters(number),
            f"{number / weights.parameters:.1%}",
            size(n_bytes),
            f"{n_bytes * 8 / number:.2f}" if number else page.glyphs.unknown,
        )
        for part, number, n_bytes in weights.parts
    ]
    page.table("weights", ("part", "parameters", "share", "bytes", "bits each"), rows)


def _comparison(page: Page, report: ModelReport) -> None:
    variants = report.comparison
    if len(variants) < 2:
        return
    base = variants[0].cache_values
    rows = [
        (
            each.name,
            page.glyphs.unknown if each.kv_heads is None else str(each.kv_heads),
            parameters(each.kv_parameters),
            parameters(each.attention_parameters),
            size(each.cache_bytes()),
            f"{each.cache_values / base:.1%}" if base else page.glyphs.unknown,
            "this model" if each.own else "",
        )
        for each in variants
    ]
    own = next((number for number, each in enumerate(variants) if each.own), None)
    header = ("", "KV heads", "K and V", "attention", "cache a token", "of MHA", "")
    page.table("if its heads shared keys and values differently", header, rows, marked=own)


def _spread(values: Iterable[int | None]) -> str:
    """One number, or the least and the most of several."""
    known = sorted({value for value in values if value is not None})
    if not known:
        return "?"
    return f"{known[0]}" if len(known) == 1 else f"{known[0]}-{known[-1]}"


LAYERS = ("layer", "heads", "reach", "Q", "K", "V", "O")


def layers_text(report: ModelReport, glyphs: Glyphs = UNICODE, width: int | None = WIDTH) -> Text:
    """A line for each run of like layers: heads, reach, and the matrices; in several lines if ``width`` needs it."""
    return stacked(LAYERS, layer_rows(report, glyphs), width)


def layer_rows(report: ModelReport, glyphs: Glyphs = UNICODE) -> list[list[list[str]]]:
    """Cells of words, under LAYERS, for each run of like layers."""
    if report.shape is None:
        return []
    rows = [_layer_cells(layer, report, glyphs) for layer in report.shape.layers]
    runs = []
    for cells, group in itertools.groupby(enumerate(rows), key=lambda pair: pair[1]):
        numbers = [number for number, _ in group]
        label = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        runs.append([[label], *cells])
    return runs


def _layer_cells(layer: LayerShape, report: ModelReport, glyphs: Glyphs) -> list[list[str]]:
    mine = report.projections.get(layer.index, {})
    heads = f"{layer.heads or '?'}/{layer.kv_heads}" if layer.attends else glyphs.unknown
    reach = [] if layer.attends or layer.state is not None else ["none"]
    if layer.attends:
        reach = [f"{layer.window:,}" if layer.window is not None else "all"]
    if layer.kv_from is not None:
        reach.append(f"KV of {layer.kv_from}")
    if layer.state is not None:
        reach.append("state")
    if layer.drafting:
        reach.append("drafts")
    cells = [_matrices(mine.get(role, ()), glyphs) for role in "qkvo"]
    if report.header is None or not report.header.tensors:
        cells = _expected(layer, report, glyphs)
    if "qkv" in mine:
        fused = ["QKV", *_matrices(mine["qkv"], glyphs)]
        cells[:3] = [fused, ["in Q"], ["in Q"]]
    return [[heads], reach, *cells]


def _expected(layer: LayerShape, report: ModelReport, glyphs: Glyphs) -> list[list[str]]:
    """The shapes that follow from the heads, if there are no tensors."""
    shape = report.shape
    width = shape.embedding_length if shape is not None and not shape.latent and shape.cache != "compressed" else None
    if not width or not layer.heads or not layer.kv_heads or not layer.attends:
        return [[glyphs.unknown]] * 4
    query, output = layer.heads * layer.key_length, layer.heads * layer.value_length
    return [
        [f"{width}x{query}"],
        [f"{width}x{layer.key_width}"],
        [f"{width}x{layer.value_width}"],
        [f"{output}x{width}"],
    ]


def _matrices(tensors: Sequence[TensorInfo], glyphs: Glyphs) -> list[str]:
    parts = []
    for tensor in tensors:
        parts += ["x".join(map(str, tensor.shape)), printable(tensor.type)]
    return parts or [glyphs.unknown]


def tensors_text(tensors: Sequence[TensorInfo], glyphs: Glyphs = UNICODE) -> Text:
    """A line for each tensor: name, shape, type, bytes."""
    rows = [
        [
            [printable(each.name)],
            ["x".join(map(str, each.shape)) or "1"],
            [each.type],
            [exact_bytes(each.n_bytes, glyphs)],
        ]
        for each in tensors
    ]
    return stacked(["tensor", "shape", "type", "bytes"], rows, None)


def choices_text(found: Choices, glyphs: Glyphs = UNICODE) -> Text:
    """The choices, and how to name each."""
    rows = [
        [
            [printable(found.reference(choice))],
            [choice.quant or glyphs.unknown],
            [size(choice.size, glyphs)],
            [f"{choice.files} files" if choice.files > 1 else ""],
        ]
        for choice in found.choices
    ]
    text = Text(f"{printable(found.name)} has {len(found.choices)} models; name one of them:", "bold")
    return text.append("\n").append_text(stacked(["model", "type", "bytes", ""], rows, None))
