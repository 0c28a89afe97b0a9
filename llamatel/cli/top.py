"""``llamatel top``: the current state on a terminal; in a pipe, one line per second and server.

Exit code 0 after q, Ctrl-C or SIGTERM, and when the reader closed the pipe.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.live import Live as Screen

from llamatel.cli.console import output_console
from llamatel.cli.options import add_times, verbose_option, warnings_kept
from llamatel.cli.server_options import AccessOptions, access_options
from llamatel.cli.signals import Interrupted, ending_signals
from llamatel.cli.telemetry_options import options_of, page_token
from llamatel.errors import ServerUnreachable, UsageError
from llamatel.llama.watch.targets import target
from llamatel.metrics import DEFAULT_METRICS_ADDR
from llamatel.ui.top.keys import Keys, keyboard
from llamatel.ui.top.live_source import BackgroundFetch, LlamatelSource, ServersSource, Source, is_llamatel
from llamatel.ui.top.screen import Choices, plain_lines, screen
from llamatel.ui.view.glyphs import glyphs_for

_GUESSES = (f"http://{DEFAULT_METRICS_ADDR}", "http://127.0.0.1:8090", "http://127.0.0.1:8080")
"""Tried if no URL is given: a llamatel, then llama.cpp at llamatel's and at its own default port."""
_SETTLE_S = 2.0
"""How long ``--once`` waits for the two polls that rates need."""
_NAMED_PROBE_S = 5.0
"""Timeout of checking whether a URL that the user gave is a llamatel."""
_PENDING_CHECK_S = 0.05
_RESIZE_CHECK_S = 0.5


@click.command("top")
@click.argument("urls", metavar="[URL]...", nargs=-1)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="Seconds between updates.",
)
@click.option("--once", is_flag=True, help="Print the state once and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print the live document as JSON, one per line.")
@access_options
@click.option(
    "--page-token-file", metavar="FILE", help="Token of a page that requires one.  [default: $LLAMATEL_PAGE_TOKEN]"
)
@verbose_option
def command(urls: tuple[str, ...], interval: float, once: bool, as_json: bool, **values: Any) -> int:
    """Show the current state of llama.cpp servers: slots, KV cache, running requests.

    URL is a llamatel (http://127.0.0.1:9464), which also knows requests, or one or more llama.cpp servers, which are
    polled. Without a URL, the default ports of this machine are tried.
    """
    console = output_console()
    try:
        with ending_signals():
            source = _source(urls, interval, values)
            try:
                if once or as_json or not console.is_terminal:
                    _print(source, console, interval, once=once, as_json=as_json)
                else:
                    _show(source, console, interval)
            finally:
                source.close()
    except Interrupted as interruption:
        if interruption.signum not in (signal.SIGINT, signal.SIGTERM):
            raise
    return 0


def _source(urls: tuple[str, ...], interval: float, values: dict[str, Any]) -> Source:
    token = page_token(values["page_token_file"], named=bool(urls))
    access = options_of(AccessOptions, values).access()
    if not urls:
        access = dataclasses.replace(
            access, api_key=None, headers={}
        )  # the user did not give the address that would receive them
    targets = [target(url) for url in urls or _GUESSES]
    patience = {"timeout_s": _NAMED_PROBE_S} if urls else {}
    probed = targets if len(urls) <= _PROBED else []
    llamatels = [one.url for one in probed if is_llamatel(one.url, token, **patience)]
    if not urls:
        if llamatels:
            return LlamatelSource(llamatels[0], token)
        targets = [one for one in targets[1:] if access.client(one, timeout_s=1.0).healthy()]
        if not targets:
            raise ServerUnreachable(
                f"neither a llamatel ({_GUESSES[0]}) nor a llama.cpp server ({', '.join(_GUESSES[1:])}) answers here: "
                "start one with llamatel serve MODEL, or give its URL"
            )
    if llamatels and len(urls) > 1:
        raise UsageError(f"{llamatels[0]} is a llamatel: give it alone, or only llama.cpp servers")
    return LlamatelSource(llamatels[0], token) if llamatels else ServersSource(targets, access, interval)


_PROBED = 4
"""More URLs than this are llama.cpp servers, and not probed."""


def _print(source: Source, console: Console, interval: float, *, once: bool, as_json: bool) -> None:
    started = time.monotonic()
    if not once:
        add_times()
    while True:
        document = source.document(None)
        if once and isinstance(source, ServersSource) and time.monotonic() - started < _SETTLE_S:
            time.sleep(min(interval, _SETTLE_S) / 2)
            continue
        if as_json:
            sys.stdout.write(json.dumps(document) + "\n")
            sys.stdout.flush()
        elif once and console.is_terminal:
            glyphs = glyphs_for(console.encoding)
            console.print(screen(document, Choices(), console.width, console.height - 1, glyphs=glyphs), soft_wrap=True)
        else:
            for line in plain_lines(document):
                console.print(line, soft_wrap=True)
        if once:
            return
        time.sleep(interval)


def _show(source: Source, console: Console, interval: float) -> None:
    choices = Choices()
    glyphs = glyphs_for(console.encoding)
    document = source.document(None)
    error: str | None = None
    fetch, due, wanted = BackgroundFetch(source), time.monotonic() + interval, False
    size = None
    live = Screen(console=console, screen=True, auto_refresh=False, redirect_stderr=False)
    with warnings_kept() as warnings, keyboard() as keys, live as shown:
        while True:
            if size != console.size:
                size = console.size
                kept = [{"at": record.created, "text": record.getMessage()} for record in tuple(warnings)]
                shown_document = {
                    **document,
                    "alarms": sorted((*document["alarms"], *kept), key=lambda alarm: alarm["at"]),
                }
                shown.update(screen(shown_document, choices, *size, glyphs=glyphs, error=error), refresh=True)
            focus = choices.focus
            for key in _pressed(
                keys, _PENDING_CHECK_S if fetch.pending else min(_RESIZE_CHECK_S, due - time.monotonic())
            ):
                if not choices.press(key, document):
                    return
                size = None
            wanted |= choices.focus != focus
            try:
                answer = fetch.result()
            except ServerUnreachable as failure:
                error, size = str(failure), None
            else:
                if answer is not None:
                    document, error, size = answer, None, None
            if not fetch.pending and (wanted or (time.monotonic() >= due and not choices.paused)):
                fetch.start(choices.focus)
                due, wanted = time.monotonic() + interval, False


def _pressed(keys: Keys | None, timeout_s: float) -> list[str]:
    """The keys pressed within the timeout; returns at the first one."""
    if keys is not None:
        return keys.wait(timeout_s)
    time.sleep(max(timeout_s, 0.0))
    return []
