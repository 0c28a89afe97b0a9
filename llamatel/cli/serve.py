"""``llamatel serve``: runs a llama.cpp server, with a trace for every request.

Exits with 0 after Ctrl-C or SIGTERM once the server was ready, with 128 + n after another terminating signal n or one
during model loading, and with 1 if the server failed for good.
"""

from __future__ import annotations

import dataclasses
import logging
import signal
from typing import Any

import click

from llamatel.cli.console import note_console
from llamatel.cli.options import (
    add_times,
    label_option,
    requests_option,
    server_options,
    telemetry_options,
    verbose_option,
)
from llamatel.cli.server_start import load_model, server_lines, wait_for_end
from llamatel.cli.service_manager import reload
from llamatel.cli.signals import Interrupted, ending_signals
from llamatel.cli.telemetry_options import (
    TelemetryOptions,
    columns,
    options_of,
    request_lines,
    telemetry,
)
from llamatel.cli.terminal_alarms import alarms_shown
from llamatel.llama.server.backends import find_backend
from llamatel.llama.server.manager import ServerManager
from llamatel.llama.server.server_command import secret_flags
from llamatel.llama.watch.targets import parse_label
from llamatel.ui.request_statistics import RequestStatistics
from llamatel.ui.view import summary_sentence

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ManagerOptions:
    """Arguments of ServerManager."""

    backend: str | None = None
    restart: str = "never"
    max_restarts: int = 5
    stalled_after: float = 60.0
    server_log: str | None = None
    labels: dict[str, str] | None = None


class ServerCommand(click.Command):
    """A command whose arguments after ``--`` are passed to llama-server unchanged."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Cut the line at ``--`` before click sees it; a flag that only llama-server knows gets a hint."""
        ours, theirs = args, []
        if "--" in args:
            cut = args.index("--")
            ours, theirs = args[:cut], args[cut + 1 :]
        ctx.meta["llamatel.server_args"] = theirs
        try:
            return super().parse_args(ctx, ours)
        except click.NoSuchOption as error:
            hint = f"if it is llama-server's, put it after --: llamatel serve MODEL -- {error.option_name}"
            raise click.UsageError(f"{error.format_message()} ({hint})", ctx) from error

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show the arguments after ``--`` too."""
        return [*super().collect_usage_pieces(ctx), "[-- LLAMA-SERVER FLAGS]"]


@click.command("serve", cls=ServerCommand)
@click.argument("model", metavar="MODEL", required=False)
@click.option("--preset", metavar="NAME", help="Settings for a machine: kaggle-t4x2.")
@server_options
@label_option
@telemetry_options
@requests_option
@verbose_option
@click.pass_context
def command(ctx: click.Context, /, model: str | None, preset: str | None, **values: Any) -> int:
    """Run a llama.cpp server on MODEL (a GGUF file, or tiny) and observe it.

    Clients use llama.cpp directly; llamatel reads its log. llama-server's -b, -ub, -fa, -kvu, --swa-full, -ts, -sm and
    -mg are accepted as well; pass any other flag after --, where the model may also be.
    """
    server_args: list[str] = ctx.meta["llamatel.server_args"]
    if model is None and not server_args:
        raise click.UsageError("Missing argument 'MODEL' (a GGUF file)", ctx)
    add_times()
    for flag, instead in secret_flags(server_args).items():
        log.warning("%s on the command line is visible to every user of this machine: use %s", flag, instead)
    options = options_of(TelemetryOptions, values)
    values["labels"] = dict(map(parse_label, values["labels"]))
    manager_options = options_of(ManagerOptions, values)
    lines = request_lines(options)
    statistics = RequestStatistics()
    notes = note_console()
    ready = False
    ready_timeout = values.pop("ready_timeout")
    arguments = {name: value for name, value in values.items() if value is not None}
    if preset is not None:
        from llamatel.cli.preset_option import with_preset

        arguments, summary = with_preset(preset, model, arguments, server_args)
        notes.print(summary, soft_wrap=True)
    try:
        with (
            ending_signals(hangup=reload),
            telemetry(options, [lines, statistics], backend=find_backend(manager_options.backend)) as running,
            ServerManager(**dataclasses.asdict(manager_options)) as server,
        ):
            seconds = load_model(server, model, notes, ready_timeout=ready_timeout, extra_args=server_args, **arguments)
            ready = True
            notes.print(f"llamatel: ready after {seconds:.1f} s; Ctrl-C ends it")
            for row in columns(server_lines(server, running)):
                notes.print(row, soft_wrap=True)
            with alarms_shown(running, notes):
                wait_for_end(server)
    except Interrupted as interruption:
        if not ready or interruption.signum not in (signal.SIGINT, signal.SIGTERM):
            raise
    finally:
        if ready:
            notes.print(f"llamatel: {summary_sentence(statistics.summary())}", soft_wrap=True)
    return 0
