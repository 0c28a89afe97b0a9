"""Common parts of all dashboards: variables, annotations, links, time range and layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard as models

from llamatel.telemetry.prometheus_names import prometheus_name
from llamatel.ui.objectives import Objectives
from llamatel_dashboards.panels import SOURCE, Panel
from llamatel_dashboards.queries import ADDRESS, MODEL, OF_JOB, PORT, firing, selector

TAG = "llamatel"
_FOUND_BY = '{{__name__=~"{}"{}}}'
_ALWAYS = "|".join(
    prometheus_name(name) for name in ("llamacpp.server.state", "llamacpp.model.state", "llamacpp.requests")
)
"""Every watched server has one of these: its state, a router model's state or, with only a log, requests."""

_OBJECTIVES = {
    "error_budget": (
        "Error budget",
        "Share of requests that may miss an objective.",
        ("0.001", "0.005", "0.01", "0.02", "0.05", "0.1"),
        Objectives().error_budget,
    ),
    "ttft_objective": (
        "TTFT objective (s)",
        "Time to first token that a request should stay within; a bound of the histogram.",
        ("0.1", "0.25", "0.5", "1", "2.5", "5", "10", "20"),
        Objectives().ttft_s,
    ),
    "tpot_objective": (
        "TPOT objective (s)",
        "Time per output token that a request should stay within; a bound of the histogram.",
        ("0.01", "0.025", "0.05", "0.075", "0.1", "0.15", "0.2", "0.5", "1"),
        Objectives().tpot_s,
    ),
}


def _labels(name: str, label: str, title: str, among: str) -> builders.QueryVariable:
    query = f"label_values({_FOUND_BY.format(_ALWAYS, f', {among}' if among else '')}, {label})"
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    variable = builders.QueryVariable(name).label(title).datasource(SOURCE)
    variable = variable.query({"query": query, "refId": name}).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    variable = variable.sort(models.VariableSort.ALPHABETICAL_ASC).multi(multi=True)
    return variable.include_all(include_all=True).all_value(".*").current(everything)


def _objective(name: str) -> builders.CustomVariable:
    title, help_text, values, preset = _OBJECTIVES[name]
    chosen = next(value for value in values if float(value) == float(preset))
    options = [models.VariableOption(value == chosen, value, value) for value in values]
    variable = builders.CustomVariable(name).label(title).description(help_text).values(",".join(values))
    return variable.options(options).current(models.VariableOption(selected=True, text=chosen, value=chosen))


Variable = Any
"""A builder of one of the SDK's variables; they share no base class."""


def _variables() -> list[Variable]:
    site = 'cluster=~"$cluster", namespace=~"$namespace"'
    address, port = f'{ADDRESS}=~"$server"', f'{PORT}=~"$port"'
    return [
        builders.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _labels("cluster", "cluster", "Cluster", ""),
        _labels("namespace", "namespace", "Namespace", 'cluster=~"$cluster"'),
        _labels("job", "job", "Job", site),
        _labels("instance", "instance", "llamatel", f'{site}, job=~"$job"'),
        _labels("server", ADDRESS, "Server", OF_JOB),
        _labels("port", PORT, "Port", f"{OF_JOB}, {address}"),
        _labels("model", MODEL, "Model", f"{OF_JOB}, {address}, {port}"),
        *map(_objective, _OBJECTIVES),
        builders.AdHocVariable("filters").label("Filters").datasource(SOURCE),
    ]


class _Annotation(models.AnnotationQuery):  # type: ignore[misc]  # untyped SDK
    """Marks on the time axis from a query; its own builder."""

    def __init__(self, name: str, expr: str, colour: str, title: str = "") -> None:
        super().__init__(name=name, datasource=SOURCE, enable=True, icon_color=colour, expr=expr)
        self._title = title or name

    def build(self) -> models.AnnotationQuery:
        return self

    def to_json(self) -> dict[str, object]:
        """With the fields of Prometheus' annotation queries, which the SDK does not have."""
        text = f"{{{{instance}}}} {{{{{ADDRESS}}}}}:{{{{{PORT}}}}} {{{{{MODEL}}}}}"
        return {**super().to_json(), "titleFormat": self._title, "textFormat": text, "step": "15s"}


def _annotations() -> list[_Annotation]:
    def grew(name: str) -> str:
        return f"increase({selector(name)}[1m]) > 0"

    return [
        _Annotation("Alerts", firing(), "red", "{{alertname}}"),
        _Annotation("Restarts", grew("llamacpp.server.restarts"), "orange"),
        _Annotation("Loads", grew("llamacpp.model.loads"), "blue"),
        _Annotation("Evictions", grew("llamacpp.model.evictions"), "purple"),
    ]


def board(uid: str, title: str, about: str, groups: Sequence[tuple[str, Sequence[Panel]]]) -> builders.Dashboard:
    """A dashboard of rows of panels; a row without a title has no heading."""
    dashboard = builders.Dashboard(title).uid(f"llamatel-{uid}").description(about).tags([TAG]).editable()
    dashboard = dashboard.time("now-30m", "now").refresh("30s").timezone("browser")
    dashboard = dashboard.tooltip(models.DashboardCursorSync.CROSSHAIR)
    dashboard = dashboard.link(
        builders.DashboardLink("llamatel")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(as_dropdown=False)
        .include_vars(include_vars=True)
        .keep_time(keep_time=True)
    )
    for annotation in _annotations():
        dashboard = dashboard.annotation(annotation)
    for variable in _variables():
        dashboard = dashboard.with_variable(variable)
    number = 0
    for heading, panels in groups:
        if heading:
            number += 1
            dashboard = dashboard.with_row(builders.Row(heading).id(number))
        for panel in panels:
            number += 1
            dashboard = dashboard.with_panel(panel.id(number))
    return dashboard
