"""What all dashboards share: variables, links to each other, time, and their order in a folder."""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard as models

from llamatel.telemetry.prometheus_names import prometheus_name
from llamatel.ui.objectives import Objectives
from llamatel_dashboards.panels import SOURCE, Panel
from llamatel_dashboards.queries import ADDRESS, MODEL, OF_JOB, PORT

TAG = "llamatel"
_FOUND_BY = '{{__name__=~"{}"{}}}'
_ALWAYS = "|".join(
    prometheus_name(name) for name in ("llamacpp.server.state", "llamacpp.model.state", "llamacpp.requests")
)
"""Metrics of which all that we watch has one: a server's state, a router's model's, or, where all we have is a log,
requests."""

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


def _labels(name: str, label: str, shown: str, among: str) -> builders.QueryVariable:
    query = f"label_values({_FOUND_BY.format(_ALWAYS, f', {among}' if among else '')}, {label})"
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    variable = builders.QueryVariable(name).label(shown).datasource(SOURCE)
    variable = variable.query({"query": query, "refId": name}).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    variable = variable.sort(models.VariableSort.ALPHABETICAL_ASC).multi(multi=True)
    return variable.include_all(include_all=True).all_value(".*").current(everything)


def _objective(name: str) -> builders.CustomVariable:
    shown, help_text, values, preset = _OBJECTIVES[name]
    chosen = next(value for value in values if float(value) == float(preset))
    options = [models.VariableOption(value == chosen, value, value) for value in values]
    variable = builders.CustomVariable(name).label(shown).description(help_text).values(",".join(values))
    return variable.options(options).current(models.VariableOption(selected=True, text=chosen, value=chosen))


def _variables() -> list[builders.DatasourceVariable | builders.QueryVariable | builders.CustomVariable]:
    address, port = f'{ADDRESS}=~"$server"', f'{PORT}=~"$port"'
    return [
        builders.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _labels("job", "job", "Job", ""),
        _labels("instance", "instance", "llamatel", 'job=~"$job"'),
        _labels("server", ADDRESS, "Server", OF_JOB),
        _labels("port", PORT, "Port", f"{OF_JOB}, {address}"),
        _labels("model", MODEL, "Model", f"{OF_JOB}, {address}, {port}"),
        *map(_objective, _OBJECTIVES),
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
