"""``llamatel attach``: traces for a server that somebody else runs, from its log.

Ends with 0 when the log ends (standard input), after Ctrl-C or SIGTERM, and when nobody reads its lines any more.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import click

from llamatel.cli.console import note_console
from llamatel.cli.options import requests_option, telemetry_options, verbose_option
from llamatel.cli.session import TelemetryOptions, columns, otlp_line, request_lines, take, telemetry
from llamatel.cli.signals import Interrupted, ending_signals
from llamatel.llama.command_line import API_KEY_VARIABLE, read_api_key
from llamatel.llama.follower import LogFollower
from llamatel.llama.log_source import FileSource, StreamSource
from llamatel.tally import Tally
from llamatel.view import summary_sentence

_LOOK_S = 0.2


@click.command("attach")
@click.argument("url", required=False)
@click.option("--log", "log", metavar="FILE|-", required=True, help="The server's log; -: standard input.")
@click.option("--from-start", is_flag=True, help="Read what is in the file already, too.")
@click.option("--api-key-file", metavar="FILE", help=f"The server's key.  [default: ${API_KEY_VARIABLE}]")
@telemetry_options
@requests_option
@verbose_option
def command(url: str | None, log: str, from_start: bool, api_key_file: str | None, **values: Any) -> int:
    """Trace a llama.cpp server that runs already, from its log.

    With URL (http://127.0.0.1:8080) llama.cpp's own counters are read too; they need its flag --metrics. The log may be
    a file (llama-server --log-file), also one that is rotated, or come through a pipe:

        kubectl logs -f POD | llamatel attach --log -
    """
    options = take(TelemetryOptions, values)
    source = StreamSource() if log == "-" else FileSource(log, from_start=from_start)
    key = read_api_key(api_key_file) if api_key_file else os.environ.get(API_KEY_VARIABLE)
    lines = request_lines(options)
    tally = Tally()
    notes = note_console()
    try:
        with ending_signals(), telemetry(options, [lines, tally]) as running:
            follower = LogFollower(source, url=url, api_key=key)
            running.observer.watch(follower)
            notes.print(f"llamatel: reading {source.name}; Ctrl-C ends it", soft_wrap=True)
            about = {
                "server": url or "as its log says; its counters need a URL",
                "metrics": running.pipeline.metrics_url or "off",
                "OTLP": otlp_line(running.settings),
            }
            for row in columns(about):
                notes.print(row, soft_wrap=True)
            follower.start()
            try:
                while not follower.wait(_LOOK_S):
                    if lines is not None and lines.closed.is_set():
                        break
            finally:
                follower.stop()
    except Interrupted as interruption:
        if interruption.signum not in (signal.SIGINT, signal.SIGTERM):
            raise
    notes.print(f"llamatel: {summary_sentence(tally.summary())}", soft_wrap=True)
    return 0
