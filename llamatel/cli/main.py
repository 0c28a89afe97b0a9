"""``llamatel``: the group of commands, and the conversion of errors to a line and an exit code.

Exit codes: 0 success, or the reader of the output closed it; 1 failure of llamatel or of the server; 2 wrong usage;
128 + n terminated by signal n (130 for Ctrl-C). Only a defect of llamatel has a traceback, and only with ``-v``.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib
import os
import sys
import traceback
from typing import Any, NoReturn

import click

from llamatel import __version__, sdk_environment
from llamatel.cli.options import set_verbosity, verbose_option, verbosity
from llamatel.cli.signals import Interrupted
from llamatel.errors import LlamatelError, shown_line

COMMANDS = {
    "demo": ("llamatel.cli.demo", "Run llama.cpp on a tiny model and show its telemetry."),
    "serve": ("llamatel.cli.serve", "Run a llama.cpp server and observe it."),
    "attach": ("llamatel.cli.attach", "Observe running servers: poll them, read their log."),
    "top": ("llamatel.cli.top", "Show slots, KV cache and requests live."),
    "inspect": ("llamatel.cli.inspect", "Describe a model from its header: attention, KV cache, weights."),
    "plan": ("llamatel.cli.plan", "Compute a server's memory, and whether it fits."),
    "explore": ("llamatel.cli.explore", "Show attention maps, keys and weights of a model."),
    "doctor": ("llamatel.cli.doctor", "Explain why requests were slow, and which flags would help."),
    "dashboards": ("llamatel.cli.dashboards", "Export Grafana dashboards and alert rules, or push them."),
}
"""Command: its module, and its line in the help (here, so that the help imports no command)."""

_SHOWN_PATH = 200
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name][0]}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, message="llamatel %(version)s")
@verbose_option
def cli() -> None:
    """OpenTelemetry for llama.cpp: request traces, latency histograms, KV-cache metrics.

    Try it without a model: llamatel demo
    """


def _print_error(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal was closed
        print(f"llamatel: error: {shown_line(message)}", file=sys.stderr, flush=True)


def _drop_stdout() -> None:
    """Discard buffered output that cannot be written, so that the exit is silent."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _exit_code(error: BaseException) -> int:
    """Print the error in one line; return the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx is not None else "llamatel"
        _print_error(f"{error.format_message()} (see {where} --help)")
        return error.exit_code
    if isinstance(error, click.ClickException):
        _print_error(error.format_message())
        return error.exit_code
    if isinstance(error, LlamatelError):
        _print_error(str(error))
        return error.exit_code
    if isinstance(error, (BrokenPipeError, SystemExit)):  # click turns only the first into the second
        return 0
    if isinstance(error, Interrupted):
        return 128 + error.signum
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return 130
    if isinstance(error, OSError) and error.errno in _FULL:
        _print_error(f"cannot write the output: {error.strerror}")
        _drop_stdout()
        return 1
    if verbosity() > 0:
        lines = "".join(traceback.format_exception(error)).splitlines()
        print(*(shown_line(line) for line in lines), sep="\n", file=sys.stderr)
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        _print_error(f"{str(error.filename)[:_SHOWN_PATH]}: {error.strerror}")
        return 1
    _print_error(f"this is a defect of llamatel: {type(error).__name__}: {error} (-v shows where)")
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code and raises nothing."""
    for stream in (sys.stdout, sys.stderr):
        # Characters that the output's encoding lacks become "?" instead of an error.
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    set_verbosity(0)
    sdk_environment.remove_invalid(os.environ)
    try:
        result = cli.main(args=arguments, prog_name="llamatel", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except (Exception, Interrupted, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - the last boundary
        code = _exit_code(error)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    except OSError as error:
        code = _exit_code(error)
    return code


def _open_closed_streams() -> None:
    """Open /dev/null for standard streams that are closed: the next file opened would get their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def run() -> NoReturn:
    """The console script.

    Everything is closed when ``main`` returns, so the interpreter's own teardown is skipped: it takes 0.1 s, and on a
    busy machine longer than a container runtime waits before SIGKILL.
    """
    _open_closed_streams()
    code = main()
    atexit._run_exitfuncs()
    os._exit(code)


if __name__ == "__main__":
    run()
