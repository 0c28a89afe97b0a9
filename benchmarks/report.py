"""The figures as tables, compared with the targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.attach import Attached
from benchmarks.cost import Cost
from benchmarks.decorators import DecoratorFigures
from benchmarks.header import HeaderFigures
from benchmarks.instructions import Instructions
from benchmarks.page import PageCost
from benchmarks.pieces import Pieces
from benchmarks.ratios import Ratios, Spread
from benchmarks.servers import CONTROL, PLAIN, PROMETHEUS

THROUGHPUT = {False: 0.96, True: 0.92}
"""Of plain llama.cpp's; True: with OTLP."""
REQUEST_MS = {False: 0.2, True: 0.45}
TOKEN_SHARE = 0.01
"""Of what llama.cpp itself spends on a token: stands for none, as the kernel's clock resolves little less."""
MEMORY_MIB = 80.0
HEADER_RATIO = 400.0
POLLS_KEPT = 0.95
HEADER_MS = 100.0
DECORATOR_RATIO = 1.15
"""Of a bare start_as_current_span."""
_QUIET = 0.05


@dataclass
class Report:
    """All that was measured."""

    about: dict[str, Any]
    ratios: list[Ratios] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    ready_s: dict[str, float] = field(default_factory=dict)
    """From start to first answer, by variant."""
    pieces: Pieces | None = None
    header: HeaderFigures | None = None
    decorators: DecoratorFigures | None = None
    instructions: Instructions | None = None
    attached: Attached | None = None
    page: PageCost | None = None
    foreign: float = 0.0
    """Share of the machine's CPU time that went to other work while blocks ran."""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        targets = [{"target": text, "met": met} for text, met in self.targets()]
        found = {**dataclasses.asdict(self), "targets": targets}
        if self.header is not None:
            found["header"] |= {"ratio": self.header.ratio, "cpu_ratio": self.header.cpu_ratio}
        return found

    def targets(self) -> list[tuple[str, bool]]:
        """Each target with the worst figure that stands against it, and whether it is met."""
        found = []
        if self.header is not None:
            where = "than gguf-py's GGUFReader"
            found.append(_judge("header, times faster", self.header.ratio, HEADER_RATIO, where, at_least=True))
            found.append(_judge("header, best time", self.header.ours_best_ms, HEADER_MS, self.header.file, unit=" ms"))
        if self.decorators is not None:
            found.append(
                _judge("decorator, times a bare span", self.decorators.ratio, DECORATOR_RATIO, "@llamatel.task")
            )
        if self.attached is not None:
            many = self.attached
            where = f"{many.targets} servers"
            kept = many.polls_per_s / many.targets
            found.append(_judge("attached, polls a second a server", kept, POLLS_KEPT, where, at_least=True))
            found.append(_judge("attached, cores", max(many.idle_cores, many.busy_cores), 1.0, where))
        against = [row for row in self.ratios if row.variant not in (PLAIN.name, CONTROL.name)]
        for otlp, limit in THROUGHPUT.items():
            rows = [row for row in against if (row.variant != PROMETHEUS.name) is otlp]
            if rows:
                worst = min(rows, key=lambda row: row.throughput.median)
                where = f"{worst.variant}, {worst.connections} connections"
                found.append(_judge("throughput ratio", worst.throughput.median, limit, where, at_least=True))
        for otlp, limit in REQUEST_MS.items():
            costs = [cost for cost in self.costs if (cost.variant != PROMETHEUS.name) is otlp]
            if costs:
                dear = max(costs, key=lambda cost: cost.request_ms.median)
                found.append(_judge("CPU a request", dear.request_ms.median, limit, dear.variant, unit=" ms"))
        if self.costs:
            shares = [cost.token_us.median / cost.server_token_us for cost in self.costs]
            for what, unit, limit, figures in (
                ("CPU a generated token, in parts of llama.cpp's own", "", TOKEN_SHARE, shares),
                ("resident memory, peak", " MiB", MEMORY_MIB, [cost.peak_mib for cost in self.costs]),
            ):
                dearest = max(zip(figures, self.costs, strict=True), key=lambda pair: pair[0])
                found.append(_judge(what, dearest[0], limit, dearest[1].variant, unit=unit))
            missed = sum(cost.requests - cost.seen for cost in self.costs)
            lost = sum(cost.dropped for cost in self.costs)
            found.append((f"requests that went unseen: {missed}; spans lost: {lost}", not missed and not lost))
        return found

    def text(self) -> str:
        """For people."""
        parts = [", ".join(f"{name} {value}" for name, value in self.about.items())]
        if self.decorators is not None:
            parts += ["\nA span around a function, CPU time a call", *self.decorators.lines()]
        if self.header is not None:
            parts += ["\nReading a header, tensors included", *self.header.lines()]
        if self.ratios:
            parts += [
                "\nThe same load on llama.cpp alone and under llamatel (ratio to alone: median [lowest-highest round])",
                *_ratio_table(self.ratios),
            ]
        if self.costs:
            parts += ["\nWhat llamatel itself uses", *_cost_table(self.costs)]
        if self.ready_s:
            times = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.ready_s.items())
            parts.append(f"\nSeconds from start to the first answer: {times}")
        if self.pieces is not None:
            pieces = self.pieces
            parts.append(
                f"Reading the log: {pieces.log_request_us:.0f} us a request of {pieces.log_lines:.1f} lines; "
                f"import llamatel: {pieces.import_ms:.0f} ms; all that serve imports: {pieces.import_serve_ms:.0f} ms"
            )
        if self.instructions is not None:
            parts += ["\nInstructions, thousands (a request; a scrape)", *self.instructions.lines()]
        if self.attached is not None:
            parts += ["\nAttached to many servers", *self.attached.lines()]
        if self.page is not None:
            parts += ["\nThe web page, with four clients at work", *self.page.lines()]
        if targets := self.targets():
            parts.append("\nTargets (the worst variant)")
            parts += [f"  {'met   ' if met else 'MISSED'}  {text}" for text, met in targets]
        if self.foreign > _QUIET:
            parts.append(f"\nOther work used {self.foreign:.0%} of this machine's CPU time: repeat on a quiet one")
        return "\n".join(parts)


def _judge(
    what: str, figure: float, limit: float, where: str, *, unit: str = "", at_least: bool = False
) -> tuple[str, bool]:
    met = figure >= limit if at_least else figure <= limit
    sign = ">=" if at_least else "<="
    return f"{what} {figure:.3g}{unit} (target {sign} {limit:g}{unit}; {where})", met


def _spread(value: Spread, digits: int = 3) -> str:
    return f"{value.median:.{digits}f} [{value.low:.{digits}f}-{value.high:.{digits}f}]"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    shown = []
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        shown.append("  " + "  ".join(cells))
    return shown


def _ratio_table(ratios: Iterable[Ratios]) -> list[str]:
    head = (
        "", "clients", "req/s", "p50 ms", "p99 ms", "throughput", "p50", "p99", "llama.cpp's CPU", "llamatel, cores"
    )  # fmt: skip
    rows = []
    for row in ratios:
        absolute = (f"{row.requests_per_second:.0f}", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}")
        relative: tuple[str, ...] = ("",) * 5
        if row.variant != PLAIN.name:
            cores = "" if row.variant == CONTROL.name else f"{row.llamatel_cores:.3f}"
            relative = (*map(_spread, (row.throughput, row.p50, row.p99, row.server_cpu)), cores)
        rows.append((row.variant, str(row.connections), *absolute, *relative))
    return _table(head, rows)


def _cost_table(costs: Iterable[Cost]) -> list[str]:
    head = (
        "", "CPU ms a request", "CPU us a token", "(llama.cpp's)", "collector ms a request", "ms a scrape", "idle ms/s",
        "MiB idle", "loaded", "peak", "requests seen",
    )  # fmt: skip
    return _table(
        head,
        [
            (
                cost.variant, _spread(cost.request_ms), _spread(cost.token_us, 2), f"{cost.server_token_us:.0f}",
                f"{cost.collector_request_ms:.3f}", f"{cost.scrape_ms:.1f}", f"{cost.idle_ms:.2f}",
                f"{cost.idle_mib:.1f}", f"{cost.loaded_mib:.1f}", f"{cost.peak_mib:.1f}",
                f"{cost.seen}/{cost.requests}",
            )
            for cost in costs
        ],
    )  # fmt: skip
