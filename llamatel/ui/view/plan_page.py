"""A plan on a page of 80 columns."""

from __future__ import annotations

from rich.text import Text

from llamatel.flags.flag_table import BUILDS, closest_flag
from llamatel.flags.server_settings import ServerSettings, padded
from llamatel.plan.advice import devices_in_words, uncounted_in_words
from llamatel.plan.attention_kind import attention_summary
from llamatel.plan.cache_plan import CachePart, CachePlan
from llamatel.plan.memory_plan import DeviceUse
from llamatel.plan.plan_report import TABLE_TYPES, PlanReport, settings_in_words
from llamatel.ui.view.glyphs import UNICODE, Glyphs
from llamatel.ui.view.number_format import plural, rate
from llamatel.ui.view.text_page import Page, Row, printable, row_text, size, table_text

_KINDS = {
    "global": "whole context",
    "window": "sliding window",
    "latent": "latent (MLA)",
    "indexer": "indexer",
    "recurrent": "recurrent state",
    "compressed": "compressed",
    "state": "compressor state",
}


def plan_text(report: PlanReport, glyphs: Glyphs = UNICODE) -> Text:
    """The plan, without a final newline."""
    text = Text(printable(report.name), "bold")
    page = Page(glyphs, [])
    _settings(page, report)
    refused = report.cache.refused or report.memory.refused
    if refused is not None:
        page.row("refused", f"llama-server does not start: {refused}")
        for line in report.advice[1:]:
            page.row("", line)
    else:
        _cache(page, report.cache)
        _memory(page, report)
        _contexts(page, report)
    for block in page.blocks:
        text.append_text(row_text(block) if isinstance(block, Row) else table_text(block))
    return text


def cache_page(cache: CachePlan) -> Page:
    """A cache plan alone."""
    page = Page(UNICODE, [])
    if cache.refused is not None:
        page.row("refused", f"llama-server does not start: {cache.refused}")
        return page
    if cache.cells is not None:
        page.row("context", f"{cache.cells.context:,} tokens, {plural(cache.cells.slots, 'slot')}")
    _cache(page, cache)
    return page


def _settings(page: Page, report: PlanReport) -> None:
    page.row("attention", attention_summary(report.shape))
    if report.shape.draft is not None:
        page.row(
            "draft model", f"{printable(report.settings.draft_model or '')}: {attention_summary(report.shape.draft)}"
        )
    page.row("server", settings_in_words(report.settings))
    _left_out(page, report.settings)
    cells = report.cache.cells
    if cells is not None:
        slots = f"{cells.slots} slot{'s' * (cells.slots > 1)}"
        if cells.slots > 1:
            slots += " sharing one pool" if cells.streams == 1 else f" of {cells.per_stream:,} tokens each"
        page.row("context", f"{cells.context:,} tokens, {slots}")
        if (trained := report.shape.context_length) is not None and cells.per_stream > padded(trained):
            page.row("", f"a slot uses {trained:,} at most: the model was trained on no more")
    for line in report.advice if (report.cache.refused or report.memory.refused) is None else ():
        page.row("answer" if line == report.advice[0] else "", line)


def _left_out(page: Page, settings: ServerSettings) -> None:
    if settings.not_counted:
        page.row("not counted", uncounted_in_words(settings.not_counted))
    if settings.unknown:
        names, hint = ", ".join(printable(flag) for flag in settings.unknown), closest_flag(settings.unknown[0])
        page.row("unknown", f"{names}: {BUILDS} has no such flag" + (f"; {hint}?" if hint else ""))


def _part(part: CachePart) -> tuple[str, ...]:
    name = _KINDS[part.kind] + (", draft model" if part.separate else ", drafting" if part.drafting else "")
    return (
        name,
        str(len(part.layers)),
        f"{part.cells:,}",
        str(part.streams),
        f"{part.total_bytes:,}",
        size(part.total_bytes),
    )


def _cache(page: Page, cache: CachePlan) -> None:
    if cache.cells is None:
        page.row("KV cache", str(cache.why_not_exact))
        return
    if cache.exact and not cache.total_bytes:
        page.row("KV cache", "none: the model keeps nothing between tokens")
        return
    columns = ((name, cache.bytes_of(column)) for name, column in (("K", "k"), ("V", "v"), ("R", "r"), ("S", "s")))
    parts = ", ".join(f"{name} {size(n_bytes)}" for name, n_bytes in columns if n_bytes)
    page.row("KV cache", f"{size(cache.total_bytes)} = {cache.total_bytes:,} bytes{f' ({parts})' if parts else ''}")
    page.row(
        "", f"exact to the byte, for {cache.verified_with}" if cache.exact else f"not exact: {cache.why_not_exact}"
    )
    if len(cache.parts) > 1:
        page.table("caches", ("kind", "layers", "cells", "streams", "bytes", ""), map(_part, cache.parts))


def _memory(page: Page, report: PlanReport) -> None:
    weights = report.shape.weights
    if report.shape.weights_unknown is not None:
        page.row("weights", f"unknown: {report.shape.weights_unknown}; whether all fits is unknown, too")
    rows = []
    for use in (*report.memory.per_device, report.memory.host):
        device = use.device
        memory, reserved = (device.memory, device.reserved) if device else (None, None)
        columns = (use.weights_bytes if weights else None, use.cache_bytes, use.compute_estimate, reserved)
        sizes = [size(column, page.glyphs) for column in (*columns, memory)]
        free = use.free
        left = page.glyphs.unknown if free is None else size(free) if free >= 0 else f"lacks {size(-free)}"
        rows.append((printable(device.name if device else "host", 24), str(use.layers), *sizes, left))
        if use.draft is not None and use.draft.needed:
            rows.append(_beside(use.draft, report))
    page.table("memory", ("", "layers", "weights", "cache", "compute*", "driver*", "has", "left"), rows)
    page.row("", "* estimated; weights are exact, and the cache as shown above")
    for line in report.measured or ():
        page.row(
            "measured",
            f"{line.device}: weights {line.model_mib}, cache {line.context_mib}, compute {line.compute_mib} MiB "
            "(llama-fit-params, which counts logits for a whole batch)",
        )
    growth = report.growth
    grows = []
    if growth.prompt_cache_bytes is None or growth.prompt_cache_bytes:
        limit = "without limit" if growth.prompt_cache_bytes is None else f"up to {size(growth.prompt_cache_bytes)}"
        grows.append(f"prompt cache {limit} (-cram)")
    if growth.checkpoints:
        grows.append(f"{growth.checkpoints} checkpoints of up to {size(growth.checkpoint_bytes)} each (-ctxcp)")
    if grows:
        page.row("host may grow", ", ".join(grows))
    _ceiling(page, report)


def _ceiling(page: Page, report: PlanReport) -> None:
    """The highest token rate, and the time of each device and the host if there are several."""
    if report.ceiling is not None:
        where = devices_in_words(report.devices)
        page.row(
            "speed",
            f"at most {rate(report.ceiling)} tokens/s for one request with a full context, by {where}'s bandwidth",
        )
    parts = [part for part in report.reads if part.n_bytes]
    if len(parts) < 2:
        return
    for part in parts:
        time = page.glyphs.unknown if part.seconds is None else f"{1e3 * part.seconds:.3g} ms"
        speed = "bandwidth unknown" if part.bandwidth is None else f"{part.bandwidth / 1e9:,.0f} GB/s"
        page.row("", f"{printable(part.name, 24)}: a token reads {size(round(part.n_bytes))} at {speed}: {time}")


def _beside(draft: DeviceUse, report: PlanReport) -> tuple[str, ...]:
    """A device's row for the draft model, below that device."""
    weights = report.shape.draft.weights if report.shape.draft is not None else None
    columns = (draft.weights_bytes if weights else None, draft.cache_bytes, draft.compute_estimate)
    return ("  draft model", str(draft.layers), *map(size, columns), "", "", "")


def _contexts(page: Page, report: PlanReport) -> None:
    rows = [
        (f"{context:,}", *(size(None if plan.refused or plan.cells is None else plan.total_bytes) for plan in plans))
        for context, plans in report.table
    ]
    if report.cache.total_bytes:
        page.table("KV cache by context and cache type", ("context", *TABLE_TYPES), rows)
    if report.largest_context is not None:
        page.row("largest", f"a context of {report.largest_context:,} tokens fits with all layers on the devices")
    if report.most_slots is not None and report.cache.cells is not None:
        each, most = report.cache.cells.per_stream, report.most_slots
        page.row("slots", f"{most} slots of {each:,} tokens each fit (-np {most} -c {most * each})")
