"""Panel builders on Grafana's SDK (development time only): one look, a text instead of NaN, legends as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, heatmap, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import prometheus as prometheus_queries
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models import prometheus as query_models

Panel = Any
"""A builder of one of the SDK's panel types; they share no base class."""

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
NO_LOG = "No request log"
"""For single figures of requests: empty means no request log; ``queries.logged`` marks no traffic with -1."""
NO_TRAFFIC = "No traffic"
NO_REQUESTS = "No request in this time, or no request log"
TOKENS_A_SECOND = "suffix: tok/s"

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = (
    "semi-dark-green", "semi-dark-yellow", "semi-dark-orange", "semi-dark-red", "semi-dark-blue", "semi-dark-purple",
    "#8e8e8e",
)  # fmt: skip
COLOURS: Mapping[str, str | Mapping[str, str]] = {
    "{{outcome}}": {"ok": GREEN, "cancelled": GREY, "error": RED, "context_full": ORANGE},
    "{{type}}": {"input_computed": BLUE, "input_cached": PURPLE, "output": GREEN},
    "{{state}}": {
        "active": ORANGE, "cached": PURPLE, "busy": ORANGE, "idle": GREEN,
        "ready": GREEN, "loaded": GREEN, "sleeping": GREY, "unloaded": GREY, "stopped": GREY, "starting": BLUE,
        "loading": BLUE, "stopping": YELLOW, "failed": RED, "stalled": RED,
    },
    "{{source}}": {"planned": BLUE, "reported": GREEN},
    "queue": YELLOW, "prefill": BLUE, "decode": GREEN,
    "p50": GREEN, "p95": YELLOW, "p99": RED, "mean": BLUE,
    "free": GREEN, "waiting": RED,
}  # fmt: skip
"""Each meaning has one colour on all dashboards: by a series' legend, or by the values of a label in it."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel."""

    expr: str
    legend: str = ""
    exemplars: bool = False
    """Dots that lead to traces, where the data source has them."""


def at(*steps: tuple[float | None, str]) -> dashboards.ThresholdsConfig:
    """Thresholds: a colour from each value on; the first value is None."""
    found = [models.Threshold(value, colour) for value, colour in steps]
    return dashboards.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(found)


PLAIN = at((None, BLUE))
"""No thresholds."""


def _target(
    query: Query, ref: str, *, instant: bool = False, form: query_models.PromQueryFormat | None = None
) -> prometheus_queries.Dataquery:
    target = prometheus_queries.Dataquery().expr(query.expr).ref_id(ref).legend_format(query.legend or "__auto")
    target = target.editor_mode(query_models.QueryEditorMode.CODE).datasource(SOURCE)
    target = target.instant() if instant else target.range()
    if form is not None:
        target = target.format(form)
    return target.exemplar(exemplar=True) if query.exemplars else target


def _framed(panel: Any, text: tuple[str, str, str], unit: str, size: tuple[int, int]) -> Any:
    title, meaning, action = text
    described = panel.title(title).description(f"{meaning}\n\n**What to do:** {action}").datasource(SOURCE)
    return described.unit(unit).span(size[0]).height(size[1])


def _texts(empty: str) -> list[models.ValueMapping]:
    """Texts for null and NaN, and for -1, which no value can be (``queries.logged``)."""
    unknown = models.ValueMappingResult(text=NO_TRAFFIC if empty == NO_LOG else empty, color="text")
    options = models.DashboardSpecialValueMapOptions(match=models.SpecialValueMatch.NULL_AND_NAN, result=unknown)
    found: list[models.ValueMapping] = [models.SpecialValueMap(options)]
    if empty == NO_LOG:
        found.append(models.ValueMap({"-1": models.ValueMappingResult(text=NO_TRAFFIC, color="text")}))
    return found


def _mapped(texts: Mapping[str, tuple[str, str]] | None) -> list[models.ValueMapping]:
    results = {
        value: models.ValueMappingResult(text=text, color=colour) for value, (text, colour) in (texts or {}).items()
    }
    return [models.ValueMap(results)] if results else []


def _coloured(panel: Any, queries: Sequence[Query]) -> Any:
    for query in queries:
        found = COLOURS.get(query.legend, {})
        for name, colour in ({query.legend: found} if isinstance(found, str) else found).items():
            value = models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})
            panel = panel.override_by_name(name, [value])
    return panel


def _refs(queries: Sequence[Query]) -> list[tuple[str, Query]]:
    return [(chr(ord("A") + index), query) for index, query in enumerate(queries)]


def figure(
    title: str,
    expr: str,
    meaning: str,
    action: str,
    *,
    unit: str = "short",
    thresholds: dashboards.ThresholdsConfig = PLAIN,
    empty: str = NO_TRAFFIC,
    decimals: int | None = None,
    texts: Mapping[str, tuple[str, str]] | None = None,
    size: tuple[int, int] = (4, 4),
) -> Panel:
    """One number: the current value, or one over the time that the dashboard shows. ``texts`` replace values."""
    panel = _framed(stat.Panel(), (title, meaning, action), unit, size)
    panel = panel.with_target(_target(Query(expr), "A", instant=True)).thresholds(thresholds)
    panel = panel.no_value(empty).mappings([*_texts(empty), *_mapped(texts)])
    panel = panel.color_mode(looks.BigValueColorMode.VALUE)
    panel = panel.graph_mode(looks.BigValueGraphMode.NONE)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(values=False))
    return panel if decimals is None else panel.decimals(decimals)


def lines(
    title: str,
    queries: Sequence[Query],
    meaning: str,
    action: str,
    *,
    unit: str = "short",
    stacked: bool = False,
    thresholds: dashboards.ThresholdsConfig | None = None,
    empty: str = NO_REQUESTS,
    at_most: float | None = None,
    size: tuple[int, int] = (8, 8),
) -> Panel:
    """Values over time; ``stacked`` if they are parts of a whole."""
    panel = _framed(timeseries.Panel(), (title, meaning, action), unit, size).min(0)
    for ref, query in _refs(queries):
        panel = panel.with_target(_target(query, ref))
    panel = panel.no_value(empty).mappings(_texts(empty)).show_points(looks.VisibilityMode.AUTO).line_width(1)
    panel = panel.color_scheme(dashboards.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
    legend = common.VizLegendOptions().display_mode(looks.LegendDisplayMode.TABLE).show_legend(show_legend=True)
    legend = legend.placement(looks.LegendPlacement.BOTTOM).calcs(["mean", "max", "lastNotNull"])
    panel = panel.legend(legend.sort_by("Max").sort_desc(sort_desc=True))
    tooltip = common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING)
    panel = panel.tooltip(tooltip)
    if at_most is not None:
        panel = panel.max(at_most)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL).group("A")).fill_opacity(30)
    else:
        panel = panel.fill_opacity(5)
    if thresholds is not None:
        dashed = common.GraphThresholdsStyleConfig().mode(looks.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(thresholds).thresholds_style(dashed)
    return _coloured(panel, queries)


def heat_map(
    title: str,
    expr: str,
    meaning: str,
    action: str,
    *,
    unit: str = "s",
    exemplars: bool = False,
    size: tuple[int, int] = (12, 8),
) -> Panel:
    """The distribution of a histogram over time."""
    panel = _framed(heatmap.Panel(), (title, meaning, action), "short", size).calculate(calculate=False)
    query = Query(expr, "{{le}}", exemplars)
    panel = panel.with_target(_target(query, "A", form=query_models.PromQueryFormat.HEATMAP)).no_value(NO_REQUESTS)
    colour = heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    panel = panel.color(colour).y_axis(heatmap.YAxisConfig().unit(unit)).cell_gap(1).show_legend()
    return panel.filter_values(heatmap.FilterValueRange().le(1e-9)).exemplars_color("rgba(255,0,255,0.7)")


def bars(
    title: str,
    queries: Sequence[Query],
    meaning: str,
    action: str,
    *,
    unit: str = "short",
    thresholds: dashboards.ThresholdsConfig = PLAIN,
    empty: str = NO_TRAFFIC,
    at_most: float | None = None,
    size: tuple[int, int] = (12, 8),
) -> Panel:
    """Current figures next to each other."""
    panel = _framed(bargauge.Panel(), (title, meaning, action), unit, size).min(0)
    for ref, query in _refs(queries):
        panel = panel.with_target(_target(query, ref, instant=True))
    panel = panel.thresholds(thresholds).no_value(empty).mappings(_texts(empty))
    panel = panel.orientation(looks.VizOrientation.HORIZONTAL).display_mode(looks.BarGaugeDisplayMode.BASIC)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(values=False))
    return panel if at_most is None else panel.max(at_most)


def states(title: str, query: Query, meaning: str, action: str, *, size: tuple[int, int] = (24, 6)) -> Panel:
    """States over time, from one series of 1 per state."""
    panel = _framed(statetimeline.Panel(), (title, meaning, action), "short", size)
    panel = panel.with_target(_target(query, "A")).no_value("Unknown").merge_values(merge_values=True)
    panel = panel.show_value(looks.VisibilityMode.NEVER).row_height(0.8)
    shown = {"1": models.ValueMappingResult(text="yes", color=GREEN)}
    return panel.mappings([models.ValueMap(shown)])


@dataclass(frozen=True, slots=True)
class Column:
    """One query's column of a table."""

    expr: str
    unit: str | None = None
    thresholds: dashboards.ThresholdsConfig | None = None
    """Colours the cells."""
    texts: Mapping[str, tuple[str, str]] | None = None
    """Text and colour instead of a value."""
    decimals: int | None = None


def _column_look(column: Column) -> list[models.DynamicConfigValue]:
    found = []
    if column.unit is not None:
        found.append(models.DynamicConfigValue("unit", column.unit))
    if column.decimals is not None:
        found.append(models.DynamicConfigValue("decimals", column.decimals))
    if column.thresholds is not None:
        found.append(models.DynamicConfigValue("custom.cellOptions", {"type": "color-background", "mode": "basic"}))
    if column.thresholds is not None:
        steps = [{"value": step.value, "color": step.color} for step in column.thresholds.build().steps]
        found.append(models.DynamicConfigValue("thresholds", {"mode": "absolute", "steps": steps}))
    if column.texts is not None:
        found += _cell_texts(column.texts)
    return found


def _cell_texts(texts: Mapping[str, tuple[str, str]]) -> list[models.DynamicConfigValue]:
    options = {value: {"text": text, "color": colour} for value, (text, colour) in texts.items()}
    mappings = [{"type": "value", "options": options}]
    coloured = {"type": "color-background", "mode": "basic"}
    return [
        models.DynamicConfigValue("custom.cellOptions", coloured),
        models.DynamicConfigValue("mappings", mappings),
    ]


def rows(
    title: str,
    columns: Mapping[str, str | Column],
    meaning: str,
    action: str,
    *,
    names: Mapping[str, str] | None = None,
    hidden: Sequence[str] = (),
    links: Mapping[str, tuple[str, str]] | None = None,
    sort: tuple[str, bool] | None = None,
    first: Sequence[str] = (),
    texts: Mapping[str, Mapping[str, tuple[str, str]]] | None = None,
    widths: Mapping[str, int] | None = None,
    size: tuple[int, int] = (24, 8),
) -> Panel:
    """A table: a column a query, a row for each set of labels that the queries share.

    ``names`` renames labels; ``hidden``, ``links`` (title and URL), ``first`` (the leftmost columns), ``texts``
    (of a label's values), ``widths`` (in pixels) and ``sort`` (column, descending) use final names.
    """
    # In a table this text is shown in every empty cell.
    panel = _framed(table.Panel(), (title, meaning, action), "short", size).no_value("–").mappings(_texts("–"))
    renamed = dict(names or {})
    for label in ("cluster", "namespace", "pod", "instance", *renamed.values()):
        # Grafana formats text that looks like a number, such as a port, as one.
        panel = panel.override_by_name(label, [models.DynamicConfigValue("unit", "string")])
    queries = {name: each if isinstance(each, Column) else Column(each) for name, each in columns.items()}
    for ref, (name, column) in zip("ABCDEFGHIJKLMNOP", queries.items(), strict=False):
        query = Query(column.expr)
        panel = panel.with_target(_target(query, ref, instant=True, form=query_models.PromQueryFormat.TABLE))
        renamed[f"Value #{ref}" if len(queries) > 1 else "Value"] = name
        if look := _column_look(column):
            panel = panel.override_by_name(name, look)
    for name, replaced in (texts or {}).items():
        panel = panel.override_by_name(name, _cell_texts(replaced))
    for name, width in (widths or {}).items():
        panel = panel.override_by_name(name, [models.DynamicConfigValue("custom.width", width)])
    for name, (link, url) in (links or {}).items():
        value = [{"title": link, "url": url}]
        panel = panel.override_by_name(name, [models.DynamicConfigValue("links", value)])
    before = {final: label for label, final in renamed.items()}
    order = {before.get(name, name): number for number, name in enumerate(first)}
    options = {"excludeByName": dict.fromkeys(("Time", "__name__", *hidden), True), "renameByName": renamed}
    if order:
        options["indexByName"] = order
    panel = panel.with_transformation(models.DataTransformerConfig("merge", options={}))
    panel = panel.with_transformation(models.DataTransformerConfig("organize", options=options))
    if sort is not None:
        panel = panel.sort_by([common.TableSortByFieldState().display_name(sort[0]).desc(desc=sort[1])])
    return panel
