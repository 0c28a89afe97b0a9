"""``llamatel demo``: llama.cpp on a tiny model, a mixed load, and its telemetry.

Needs no model and no network. Without a terminal it exits after the load (1 if a request has no trace); on a terminal
it runs until Ctrl-C, so that its metrics can be scraped and its server used.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections import Counter, deque
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from llamatel.cli.console import note_console, output_console
from llamatel.cli.demo_load import mixed_load, steady_load
from llamatel.cli.load_clients import LoadClients
from llamatel.cli.options import add_times, telemetry_options, verbose_option
from llamatel.cli.server_start import kv_cache_of, load_model, server_lines, wait_for_end
from llamatel.cli.signals import Interrupted, ending_signals
from llamatel.cli.telemetry_options import (
    RequestLines,
    TelemetryOptions,
    columns,
    options_of,
    telemetry,
)
from llamatel.errors import UsageError
from llamatel.llama.server.backends import find_backend
from llamatel.llama.server.manager import ServerManager
from llamatel.models import tiny_model
from llamatel.records import Completion, Outcome
from llamatel.runtime import Runtime
from llamatel.telemetry.jsonl import completion_as_dict
from llamatel.ui.request_statistics import RequestStatistics, Summary
from llamatel.ui.view import glyphs_for, summary_table, waterfall

_CONTEXT = 4096
_SLOTS = 4
_AT_ONCE = 9
_PAUSE_S = 0.4
_TIMEOUT_S = 300.0
_KEPT = 1000
_STEADY_EVERY_S = 1.0
_LAST_LINES_S = 3.0


class Kept:
    """The last requests and their trace ids. A sink."""

    def __init__(self) -> None:
        self.requests: deque[tuple[Completion, str | None]] = deque(maxlen=_KEPT)

    def __call__(self, completion: Completion, trace_id: str | None = None) -> None:
        """Keep one request."""
        self.requests.append((completion, trace_id))

    def best_example(self) -> tuple[Completion, str | None] | None:
        """The completed request that waited longest for a slot, else the longest one."""
        completed = [kept for kept in self.requests if kept[0].outcome is Outcome.OK]
        return max(completed, key=lambda kept: (kept[0].queue_s or 0.0, kept[0].duration_s), default=None)


@dataclasses.dataclass(frozen=True, slots=True)
class DemoOptions:
    """The flags of this command."""

    model: str | None = None
    backend: str | None = None
    port: int = 0
    keep_sending: bool = False
    as_json: bool = False


class Demo:
    """One run."""

    def __init__(self, options: DemoOptions, console: Console, notes: Console) -> None:
        self.options = options
        self.console = console
        self.notes = notes
        self.glyphs = glyphs_for(console.encoding)
        self.statistics = RequestStatistics()
        self.kept = Kept()
        self.lines = None if options.as_json else RequestLines(console)

    def run(self, telemetry_options: TelemetryOptions) -> int:
        """Returns the exit code."""
        add_times()
        with (
            telemetry(
                telemetry_options,
                [self.lines, self.statistics, self.kept],
                backend=find_backend(self.options.backend),
                metrics_port_may_move=True,
            ) as running,
            ServerManager(backend=self.options.backend) as server,
        ):
            model, extra = self.options.model, []
            if model is None:
                model = str(tiny_model())
                # More threads are slower on a model this small.
                extra = ["--threads", "1", "--threads-batch", "1"]
            load_model(
                server,
                model,
                self.notes,
                port=self.options.port,
                ctx_size=_CONTEXT,
                n_parallel=_SLOTS,
                extra_args=extra,
            )
            return self._show(running, server)

    def _show(self, running: Runtime, server: ServerManager) -> int:
        if not self.options.as_json:
            self._print(Text("llamatel demo", "bold"))
            for row in columns(server_lines(server, running)):
                self._print(row)
            self._print()
        clients = LoadClients(server.base_url, timeout_s=_TIMEOUT_S)
        try:
            results = clients.send_all(
                mixed_load(_CONTEXT // _SLOTS), at_once=_AT_ONCE, burst=_AT_ONCE, pause_s=_PAUSE_S
            )
            outcomes = Counter(result.outcome for result in results if result.outcome != "unsent")
            self._await_lines(outcomes.total(), running)
            if self.lines is not None and self.lines.closed.is_set():
                raise BrokenPipeError
            summary = self.statistics.summary()
            if self.options.as_json:
                self._print_json(running, server, outcomes, summary)
            else:
                self._print_results(running, server, summary)
            if sys.stdout.isatty() and not self.options.as_json:
                self._stay(server, clients)
        finally:
            clients.stop.set()
            clients.close()
        if summary.requests < outcomes.total():
            self.notes.print(f"llamatel: of {outcomes.total()} requests only {summary.requests} have a trace")
            return 1
        return 0

    def _await_lines(self, requests: int, running: Runtime) -> None:
        """llama.cpp sends a response before it logs the end of the request."""
        deadline = time.monotonic() + _LAST_LINES_S
        while self.statistics.requests < requests and time.monotonic() < deadline:
            time.sleep(0.01)
        running.observer.flush(_LAST_LINES_S)

    def _print(self, content: Text | str = "") -> None:
        self.console.print(content, soft_wrap=True)

    def _print_results(self, running: Runtime, server: ServerManager, summary: Summary) -> None:
        width = min(self.console.width, 120)
        example = self.kept.best_example()
        if example is not None:
            self._print()
            self._print(Text("the trace of one request", "bold"))
            self._print(waterfall(example[0], width, self.glyphs, trace_id=example[1]))
        self._print()
        self._print(summary_table(summary, self.glyphs))
        cache = kv_cache_of(server)
        if cache is not None:
            self._print(f"{'KV cache':12}{cache}")
        self._print()
        self._print(Text("what now", "bold"))
        stays = sys.stdout.isatty()
        url = running.pipeline.metrics_url
        steps = {
            "metrics": f"curl {url}" + ("" if stays else "   (while it is up)") if url else None,
            "traces": "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 llamatel demo",
            "your model": "llamatel serve model.gguf",
            "a request": f'curl {server.base_url}/v1/completions -d \'{{"prompt":"Hello"}}\'' if stays else None,
        }
        for row in columns(steps):
            self._print(row)

    def _print_json(self, running: Runtime, server: ServerManager, outcomes: Counter[str], summary: Summary) -> None:
        document = {
            "server": dataclasses.asdict(server.info),
            "metrics_url": running.pipeline.metrics_url,
            "clients": {"total": outcomes.total(), **outcomes},
            "summary": summary.as_dict(),
            "requests": [completion_as_dict(completion, trace_id) for completion, trace_id in self.kept.requests],
        }
        print(json.dumps(document, indent=2))

    def _stay(self, server: ServerManager, clients: LoadClients) -> None:
        """Wait for Ctrl-C, or for the server's exit."""
        self._print()
        self._print("The server is still up; requests to it appear here. Ctrl-C ends it.")
        try:
            if not self.options.keep_sending:
                wait_for_end(server)
            for request in steady_load():
                clients.send(request)
                time.sleep(_STEADY_EVERY_S)
                if server.wait(0) is not None:
                    wait_for_end(server)
        except Interrupted as interruption:
            if interruption.signum != signal.SIGINT:
                raise


@click.command("demo")
@click.option("--model", metavar="FILE", help="A GGUF to use instead of the tiny model.")
@click.option("--backend", metavar="NAME|PATH", help="llama-server, xllamacpp or a path.")
@click.option(
    "--port", type=click.IntRange(0, 65535), metavar="N", default=0, help="The server's port.  [default: a free one]"
)
@click.option("--keep-sending", is_flag=True, help="Send a request per second until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@telemetry_options
@verbose_option
def command(**values: Any) -> int:
    """Run llama.cpp on a tiny model, send it a mixed load, and show what llamatel sees.

    Needs no model and no network. The load: chat and completion, streaming and not, more at once than there are slots,
    one client that disconnects and one prompt that is too long. The model knows sixty words.
    """
    telemetry_values = options_of(TelemetryOptions, values)
    options = options_of(DemoOptions, values)
    if telemetry_values.jsonl == "-":
        raise UsageError("the demo writes to standard output itself: give --jsonl a file")
    with ending_signals():
        return Demo(options, output_console(), note_console()).run(telemetry_values)
