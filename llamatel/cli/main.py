"""``llamatel``: the group of verbs, and the one place where errors become a line and an exit code.

Exit codes: 0 done, or the reader of our output went away; 1 an error of llamatel or of the server; 2 wrong usage;
128 + n ended by signal n before its work was done (130 for Ctrl-C). A traceback is shown only for a defect of llamatel,
and only with ``-v``.
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

from llamatel import __version__
from llamatel.cli.options import one_line, set_verbosity, verbose_option, verbosity
from llamatel.cli.signals import Interrupted
from llamatel.errors import LlamatelError

VERBS = {
    "demo": ("llamatel.cli.demo", "Run llama.cpp on a tiny model and show what llamatel sees."),
    "serve": ("llamatel.cli.serve", "Run a llama.cpp server and trace every request."),
    "attach": ("llamatel.cli.attach", "Watch servers that run already, by polling them and from a log."),
    "top": ("llamatel.cli.top", "Show what runs now: slots, KV cache, requests."),
    "inspect": ("llamatel.cli.inspect", "Say what a model is, from its header: attention, cache, weights."),
    "plan": ("llamatel.cli.plan", "Say what a server on a model takes, and whether it fits."),
    "explore": ("llamatel.cli.explore", "Show what a model's heads attend to, on real weights."),
    "dashboards": ("llamatel.cli.dashboards", "Grafana dashboards, into a folder or into a Grafana."),
}
"""Verb: its module, whose ``command`` it is, and its line in the help (kept here so that help imports no verb)."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(VERBS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{VERBS[cmd_name][0]}.command is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="llamatel %(version)s")
@verbose_option
def cli() -> None:
    """OpenTelemetry for llama.cpp: a trace for every request, latency histograms, metrics.

    Try it without a model: llamatel demo
    """


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal was closed: there is nobody to tell
        print(f"llamatel: error: {one_line(message)}", file=sys.stderr, flush=True)


def _drop_stdout() -> None:
    """Our output cannot be written any more: what is still buffered goes nowhere, so that the exit is silent."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _exit_code(error: BaseException) -> int:
    """Say what went wrong, in one line; the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx is not None else "llamatel"
        _complain(f"{error.format_message()} (see {where} --help)")
        return error.exit_code
    if isinstance(error, click.ClickException):
        _complain(error.format_message())
        return error.exit_code
    if isinstance(error, LlamatelError):
        _complain(str(error))
        return error.exit_code
    if isinstance(error, (BrokenPipeError, SystemExit)):  # click turns the first into the second, and only that
        return 0
    if isinstance(error, Interrupted):
        return 128 + error.signum
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return 130
    if isinstance(error, OSError) and error.errno in _FULL:
        _complain(f"cannot write the output: {error.strerror}")
        _drop_stdout()
        return 1
    if verbosity() > 0:
        traceback.print_exception(error)
    _complain(f"this is a defect of llamatel: {type(error).__name__}: {error} (-v shows where)")
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code and raises nothing."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the output's encoding lacks becomes "?", not an error.
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    set_verbosity(0)
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


def _open_what_is_closed() -> None:
    """Standard streams that whoever started us has closed: what is opened next would take their places."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def run() -> NoReturn:
    """The console script.

    All that we began has ended when ``main`` returns. Taking the interpreter's objects apart one by one would come on
    top: a tenth of a second, and many where the processor is taken, so that a container runtime loses its patience.
    """
    _open_what_is_closed()
    code = main()
    atexit._run_exitfuncs()
    os._exit(code)


if __name__ == "__main__":
    run()
