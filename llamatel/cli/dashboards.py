"""``llamatel dashboards``: the Grafana dashboards that come with llamatel, into a folder or into a Grafana."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from llamatel.cli.console import note_console
from llamatel.cli.options import one_line, verbose_option
from llamatel.errors import UsageError
from llamatel.inputs.text_file import read_token
from llamatel_dashboards.grafana_api import OLDEST, Grafana

TOKEN_VARIABLE = "GRAFANA_TOKEN"  # noqa: S105 - the variable's name


@click.group("dashboards")
@verbose_option
def command() -> None:
    """Grafana dashboards (11 or newer) for what llamatel measures, and the Prometheus rules beside them."""


@command.command("export")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--dashboards-path",
    metavar="PATH",
    help="Where Grafana will find the dashboards, e.g. in its container.  [default: where they are written]",
)
@verbose_option
def export(folder: Path, dashboards_path: str | None) -> None:
    """Write dashboards, Grafana's provisioning files and the Prometheus rules into FOLDER.

    Files of the same names are replaced. FOLDER/provisioning is laid out as Grafana's own provisioning folder is.
    """
    from llamatel_dashboards import published

    try:
        written = published.export(folder, dashboards_path)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error
    for path in written:
        print(path)


@command.command("push")
@click.argument("url")
@click.option("--folder", default="llamatel", show_default=True, help="Folder in Grafana; '' for none.")
@click.option(
    "--token-file", type=click.Path(path_type=Path, dir_okay=False), help="File with a service account's token."
)
@verbose_option
def push(url: str, folder: str, token_file: Path | None) -> None:
    """Install the dashboards in the Grafana at URL, or bring them up to date there.

    The token is read from a file or from the environment (GRAFANA_TOKEN), never from the command line. Its service
    account needs the role Editor.
    """
    from llamatel_dashboards import published

    grafana = Grafana(url, _token(token_file))
    version = grafana.version()
    major = (version or "").partition(".")[0]
    if re.fullmatch("[0-9]{1,4}", major) and int(major) < OLDEST:
        note_console().print(f"llamatel: these dashboards are made for Grafana {OLDEST} and newer; this is {version}")
    folder_uid = grafana.ensure_folder(folder, published.GRAFANA_FOLDER) if folder else None
    for model in published.dashboards().values():
        print(one_line(f"{model['title']}: {grafana.put_dashboard(model, folder_uid)}"), flush=True)


def _token(token_file: Path | None) -> str | None:
    """The token from the file, else from the environment; None for a Grafana that lets anybody edit."""
    if token_file is None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        where = TOKEN_VARIABLE
    else:
        token = read_token(token_file, "the token file")
        where = str(token_file)
    if any(character.isspace() or not character.isprintable() or ord(character) > 126 for character in token):
        raise UsageError(f"{where} holds more than one token, or characters that no token has")
    return token or None
