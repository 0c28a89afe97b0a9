"""``llamatel dashboards``: Grafana dashboards and Prometheus rules, into a folder or into a Grafana."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamatel.cli.console import note_console
from llamatel.cli.options import verbose_option
from llamatel.errors import UsageError, one_line
from llamatel.inputs.text_file import read_token
from llamatel_dashboards.grafana_api import OLDEST, Grafana

if TYPE_CHECKING:
    from llamatel_dashboards.rule_options import RuleOptions

TOKEN_VARIABLE = "GRAFANA_TOKEN"  # noqa: S105 - the variable's name


@click.group("dashboards")
@verbose_option
def command() -> None:
    """Grafana dashboards (11 or newer) and Prometheus rules for llamatel's metrics."""


@command.command("export")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--ttft", metavar="TIME", help="Objective: time to first token, such as 1s.  [default: 2.5s]")
@click.option("--tpot", metavar="TIME", help="Objective: time per output token, such as 80ms.  [default: 100ms]")
@click.option("--error-budget", metavar="SHARE", help="Requests that may miss an objective.  [default: 5%]")
@click.option("--error-rate", metavar="SHARE", help="Warn when more requests fail.  [default: 5%]")
@click.option("--min-requests", metavar="N", help="Least number of requests for these alerts.  [default: 20]")
@click.option("--lost-prefill", metavar="TIME", help="Warn when more prefill per minute is repeated.  [default: 6s]")
@click.option(
    "--values",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="YAML file with the six above.  [default: LLAMATEL_OBJECTIVES, as for serve and attach]",
)
@click.option(
    "--job", "jobs", default="llamatel.*", show_default=True, metavar="REGEX", help="Prometheus jobs of llamatel."
)
@click.option(
    "--expect",
    "expected",
    multiple=True,
    metavar="MATCHERS",
    help="Alert when no such target is discovered: 'instance=\"gpu-1:9464\"'. Repeatable.",
)
@click.option(
    "--keep-labels",
    metavar="A,B",
    help="Labels that recorded series keep and dashboards show in addition to the server's.  [default: all]",
)
@click.option("--runbook-url", metavar="URL", help="Where docs/alerts.md is published; default: no runbook_url.")
@click.option(
    "--dashboards-path",
    metavar="PATH",
    help="Where Grafana finds the dashboards, e.g. in its container.  [default: where they are written]",
)
@click.option("--prometheus-url", metavar="URL", help="Provision a data source for this Prometheus.")
@click.option("--tempo-url", metavar="URL", help="Provision one for this Tempo, for links to traces.")
@click.option("--victoria-metrics", is_flag=True, help="The data source is VictoriaMetrics.")
@verbose_option
def export(folder: Path, values: Path | None, keep_labels: str | None, runbook_url: str | None, **given: Any) -> None:
    """Write dashboards, provisioning files, Prometheus rules and Kubernetes manifests into FOLDER.

    Files of the same names are replaced.
    """
    from llamatel.ui.objectives import Objectives
    from llamatel_dashboards import published
    from llamatel_dashboards.rule_options import RuleOptions

    rule_options = {name: given.pop(name) for name in ("jobs", "expected")}
    layout = {name: given.pop(name) for name in ("dashboards_path", "prometheus_url", "tempo_url", "victoria_metrics")}
    base = Objectives.from_environment() if values is None else Objectives.read(values)
    objectives = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
    options = RuleOptions(
        objectives=Objectives.parse(objectives, base),
        keep_labels=None if keep_labels is None else tuple(label.strip() for label in keep_labels.split(",") if label),
        runbook_url=runbook_url,
        **rule_options,
    )
    options = _at_bucket_bounds(options)
    for name in ("prometheus_url", "tempo_url"):
        if layout[name] is not None and not re.fullmatch(r"https?://[^\s@]+", layout[name]):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} has to be an HTTP URL without a password: put credentials into Grafana")
    if layout["tempo_url"] is not None and layout["prometheus_url"] is None:
        raise UsageError("--tempo-url needs --prometheus-url: links to traces start from that data source")
    if (path := layout["dashboards_path"]) is not None and path.startswith(published.FOREIGN):
        note_console().print(
            f"llamatel: warning: {one_line(path)} is often read by another dashboard provider; two "
            "providers of one dashboard block each other. /var/lib/llamatel/dashboards is free"
        )
    try:
        written = published.export(folder, published.ExportOptions(options, **layout))
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error
    for file in written:
        print(file)


@command.command("push")
@click.argument("url")
@click.option("--folder", default="llamatel", show_default=True, help="Folder in Grafana; '' for none.")
@click.option(
    "--token-file", type=click.Path(path_type=Path, dir_okay=False), help="File with a service account's token."
)
@click.option("--victoria-metrics", is_flag=True, help="The data source is VictoriaMetrics.")
@verbose_option
def push(url: str, folder: str, token_file: Path | None, *, victoria_metrics: bool) -> None:
    """Install or update the dashboards in the Grafana at URL.

    The token is read from a file or from the environment (GRAFANA_TOKEN), never from the command line. Its service
    account needs the role Editor. Objectives are those of LLAMATEL_OBJECTIVES.
    """
    from llamatel.ui.objectives import Objectives
    from llamatel_dashboards import published
    from llamatel_dashboards.rule_options import RuleOptions

    options = _at_bucket_bounds(RuleOptions(objectives=Objectives.from_environment()))
    grafana = Grafana(url, _token(token_file))
    version = grafana.version()
    major = (version or "").partition(".")[0]
    if re.fullmatch("[0-9]{1,4}", major) and int(major) < OLDEST:
        note_console().print(f"llamatel: these dashboards need Grafana {OLDEST} or newer; this is {version}")
    folder_uid = grafana.ensure_folder(folder, published.GRAFANA_FOLDER) if folder else None
    for model in published.dashboards(options, victoria_metrics=victoria_metrics).values():
        print(one_line(f"{model['title']}: {grafana.put_dashboard(model, folder_uid)}"), flush=True)


def _at_bucket_bounds(chosen: RuleOptions) -> RuleOptions:
    """Checked options whose latency objectives can be counted; says which ones were rounded. Raises UsageError."""
    options = chosen.at_bucket_bounds()
    options.check()
    for name in ("ttft", "tpot"):
        wanted, used = (getattr(each.objectives, f"{name}_s") for each in (chosen, options))
        if wanted != used:
            note_console().print(
                f"llamatel: --{name} {wanted:g}s: rules and dashboards count at {used:g} s, the nearest bound of the "
                "histogram's buckets",
                soft_wrap=True,
            )
    return options


def _token(token_file: Path | None) -> str | None:
    """The token from the file, else from the environment; None for a Grafana without authentication."""
    if token_file is None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        where = TOKEN_VARIABLE
    else:
        token = read_token(token_file, "the token file")
        where = str(token_file)
    if any(character.isspace() or not character.isprintable() or ord(character) > 126 for character in token):
        raise UsageError(f"{where} contains more than one token, or characters that no token has")
    return token or None
