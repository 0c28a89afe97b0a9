"""``llamatel doctor``: why requests were slow, on one page."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from llamatel.cli.console import note_console, output_console
from llamatel.cli.options import verbose_option
from llamatel.cli.server_options import AccessOptions, access_options
from llamatel.cli.signals import Interrupted, ending_signals
from llamatel.cli.telemetry_options import options_of, page_token
from llamatel.errors import ServerUnreachable, UsageError
from llamatel.gpu.ceilings import server_ceilings
from llamatel.gpu.nvml import DriverLost, NoGpu, Nvml
from llamatel.gpu.offload import devices_of, fell_back
from llamatel.inputs.rotated_files import RotatedFiles
from llamatel.llama.log.log_source import StreamSource
from llamatel.llama.watch.fleet import Fleet, logged_server
from llamatel.llama.watch.log_follower import LogFollower
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.targets import TargetFiles, target
from llamatel.metrics import DEFAULT_METRICS_ADDR
from llamatel.records import Completion, ObservedRequest
from llamatel.snapshots import DeviceSnapshot, ServerSnapshot
from llamatel.ui.diagnosis import Observation, Sample, diagnose
from llamatel.ui.request_speed import Ceiling
from llamatel.ui.top.live_schema import SPEED, InvalidDocument
from llamatel.ui.top.live_source import LlamatelSource, is_llamatel
from llamatel.ui.top.screen import completion_of
from llamatel.ui.view.diagnosis_page import diagnosis_html, diagnosis_text
from llamatel.ui.view.glyphs import glyphs_for

_MAX_REQUESTS = 200_000
"""Most requests kept for the diagnosis; older ones are dropped."""
_INTERVAL_S = 1.0
_PROBE_S = 5.0
_STOP_S = 0.5


@click.command("doctor")
@click.argument("url", metavar="[URL]", required=False)
@click.option("--log", metavar="FILE|-", help="A llama.cpp log, read to its end; -: standard input.")
@click.option(
    "--for", "seconds", type=click.FloatRange(min=1), metavar="SECONDS", default=30.0, show_default=True,
    help="How long to observe a llama.cpp server.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the diagnosis as JSON.")
@click.option("--html", metavar="FILE", help="Write the page as HTML, too.")
@access_options
@click.option(
    "--page-token-file", metavar="FILE", help="Token of a page that requires one.  [default: $LLAMATEL_PAGE_TOKEN]"
)
@verbose_option
def command(url: str | None, log: str | None, seconds: float, as_json: bool, html: str | None, **values: Any) -> int:
    """Explain why requests were slow: where the time went, what limits the server, which flags would help.

    URL is a running llamatel (http://127.0.0.1:9464, the default), whose recent requests are used, or a llama.cpp
    server, which is observed for a while. With --log the requests of a llama.cpp log are used.

        llamatel doctor --log llama-server.log
    """
    token = page_token(values.pop("page_token_file"), named=url is not None)
    access = options_of(AccessOptions, values)
    notes = note_console()
    address = url or (None if log else f"http://{DEFAULT_METRICS_ADDR}")
    with ending_signals():
        if address is not None and log is None and is_llamatel(target(address).url, token, _PROBE_S):
            observation = _of_llamatel(target(address).url, token)
        elif url is None and log is None:
            raise ServerUnreachable(f"no llamatel answers at {address}: give a URL, or --log FILE")
        else:
            observation = _observe(url, log, seconds, access, notes)
    diagnosis = diagnose(observation)
    if html is not None:
        _write(html, diagnosis_html(diagnosis))
    if as_json:
        json.dump(diagnosis.as_dict(), sys.stdout, indent=2, allow_nan=False)
        sys.stdout.write("\n")
    else:
        console = output_console()
        console.print(diagnosis_text(diagnosis, glyphs_for(console.encoding)), soft_wrap=True)
    return 0


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"'{path}' cannot be written: {error.strerror}") from None


# -- a running llamatel ------------------------------------------------------------------------------------------------


def _of_llamatel(url: str, token: str | RotatedFiles[str] | None) -> Observation:
    """Observations from a llamatel's document: recent requests and history of the server in focus."""
    source = LlamatelSource(url, token)
    try:
        document = source.document(None)
    finally:
        source.close()
    focus = document["focus"]
    requests = [completion_of(request) for request in document["requests"] if request["server"] == focus]
    server = next((one for one in document["servers"] if one["key"] == focus), None)
    slots = None if server is None or server["slots"] is None else len(server["slots"])
    history = document["history"]
    samples = [
        Sample(busy=busy, slots=slots, waiting=None, headroom=None) for busy in history["busy"] if busy is not None
    ]
    times = [request.arrived_at for request in requests]
    prefill, decode = ceilings_in(document.get("speed"))
    return Observation(
        source=url,
        seconds=document["taken_at"] - min(times) if times else 0.0,
        completions=tuple(requests),
        samples=tuple(samples),
        server=(focus or "").partition(" ")[0],
        model=None if server is None else server["model"],
        slots=slots,
        prefill_ceiling=prefill,
        decode_ceiling=decode,
        counters={} if server is None else server["counters"],
    )


def ceilings_in(speed: object) -> tuple[Ceiling | None, Ceiling | None]:
    """Of prefill and decode, from the shares that a llamatel shows: seconds per token are linear in the context."""
    found: list[Ceiling | None] = []
    try:
        lines = SPEED(speed)
    except InvalidDocument:
        return None, None
    for phase in ("prefill", "decode"):
        points = [point for line in lines[phase] for point in line["points"]]
        shares = [(point["context"], point["tokens_per_second"], point["ceiling_share"]) for point in points]
        least = {context: share / rate for context, rate, share in shares if share and share > 0 and rate > 0}
        if not least:
            found.append(None)
            continue
        slope, base = statistics.linear_regression(least, least.values()) if len(least) > 1 else (0.0, *least.values())
        found.append(partial(_on_line, slope, base))
    return found[0], found[1]


def _on_line(slope: float, base: float, context: int) -> float | None:
    seconds = base + slope * context
    return 1 / seconds if seconds > 0 else None


# -- a log, a server ---------------------------------------------------------------------------------------------------


@dataclass
class _Observed:
    """Collects requests and samples while a server is observed."""

    samples: list[Sample] = field(default_factory=list)
    devices: tuple[DeviceSnapshot, ...] = ()
    _completions: deque[Completion] = field(default_factory=lambda: deque(maxlen=_MAX_REQUESTS))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def finished(self, request: Completion | ObservedRequest) -> None:
        """A listener of the server."""
        if isinstance(request, Completion):
            with self._lock:
                self._completions.append(request)

    def completions(self) -> tuple[Completion, ...]:
        """The requests so far; an interrupted reader may still add some."""
        with self._lock:
            return tuple(self._completions)

    def sample(self, state: ServerSnapshot, devices: tuple[DeviceSnapshot, ...]) -> None:
        """Record the state at a poll."""
        self.devices = devices
        cache, slots = state.kv_cache, state.slots
        share = None
        if cache is not None and cache.headroom is not None and cache.capacity:
            share = cache.headroom / cache.capacity
        throttled = {reason for device in devices_of(state, devices)[0] for reason in device.throttled_by or ()}
        self.samples.append(
            Sample(
                busy=None if slots is None else sum(slot.busy for slot in slots),
                slots=None if slots is None else len(slots),
                waiting=state.deferred,
                headroom=share,
                throttled=tuple(sorted(throttled)),
            )
        )


def _observe(url: str | None, log: str | None, seconds: float, access: AccessOptions, notes: Console) -> Observation:
    observed = _Observed()
    started = time.monotonic()
    with contextlib.ExitStack() as running:
        fleet = Fleet(TargetFiles((), [target(url)] if url else []), access.access(), has_log=log is not None)
        running.callback(fleet.stop)
        server = next(iter(fleet.servers), None) or logged_server()
        server.blocking = True
        running.callback(server.subscribe(observed.finished))
        if url:
            server.check()
            if log is None and server.snapshots()[0].up is not True:
                raise ServerUnreachable(f"no llama.cpp server answers at {url}: check the URL, or give --log FILE")
            fleet.start()
        follower = running.enter_context(_following(log, server)) if log is not None else None
        text = f"observing {url}" if url else f"reading {log}"
        try:
            with _progress(notes, text):
                _collect(server if url else None, follower, observed, seconds)
        except Interrupted:
            notes.print("llamatel: interrupted: this is what was read so far", soft_wrap=True)
        state = server.snapshots()[0]
    completions = observed.completions()
    times = [completion.arrived_at for completion in completions]
    ceilings = server_ceilings(state, observed.devices)
    span = max(completion.ended_at for completion in completions) - min(times) if times else 0.0
    return Observation(
        source=" and ".join(filter(None, (url, log and ("standard input" if log == "-" else log)))),
        seconds=time.monotonic() - started if url else span,
        completions=completions,
        samples=tuple(observed.samples),
        server=state.server.shown_address if state.server.address != "unknown" else "",
        build=state.server.build,
        model=state.server.model,
        settings=state.settings,
        slots=None if server.log is None else server.log.logged.slots,
        shape=state.model,
        on_cpu=_on_cpu(state, observed.devices),
        prefill_ceiling=None if ceilings is None else ceilings.prefill,
        decode_ceiling=None if ceilings is None else ceilings.decode,
        counters=state.counters,
        log=None if log is None else state.log,
    )


def _collect(server: ObservedServer | None, follower: LogFollower | None, observed: _Observed, seconds: float) -> None:
    """Observe until the time is up; without a server, until the log ends."""
    deadline = time.monotonic() + seconds
    driver = _driver() if server is not None else None
    try:
        while server is None or time.monotonic() < deadline:
            if follower is not None and follower.wait(_INTERVAL_S) and server is None:
                return
            if server is not None:
                if follower is None or follower.wait(0):
                    time.sleep(min(_INTERVAL_S, max(0.0, deadline - time.monotonic())))
                observed.sample(server.snapshots()[0], _read(driver))
    finally:
        if driver is not None:
            driver.close()


@contextlib.contextmanager
def _following(log: str, server: ObservedServer) -> Iterator[LogFollower]:
    with contextlib.ExitStack() as opened:
        if log == "-":
            source = StreamSource()
        else:
            try:
                descriptor = os.open(log, os.O_RDONLY)
            except OSError as error:
                raise UsageError(f"'{log}' cannot be read: {error.strerror}") from None
            opened.callback(os.close, descriptor)
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise UsageError(f"'{log}' cannot be read: it is a directory")
            source = StreamSource(descriptor, log)
        follower = LogFollower(source, server).start()
        try:
            yield follower
        finally:
            if not follower.stop(_STOP_S):  # interrupted amid many lines: its thread ends with the process
                opened.pop_all()


@contextlib.contextmanager
def _progress(notes: Console, text: str) -> Iterator[None]:
    if not notes.is_terminal:
        notes.print(f"llamatel: {text}", soft_wrap=True)
        yield
        return
    shown = (SpinnerColumn("line"), TextColumn("{task.description}; Ctrl-C ends it"), TimeElapsedColumn())
    with Progress(*shown, console=notes, transient=True) as progress:
        progress.add_task(text, total=None)
        yield


# -- GPUs ----------------------------------------------------------------------------------------------------------


def _driver() -> Nvml | None:
    try:
        return Nvml()
    except NoGpu:
        return None


def _read(driver: Nvml | None) -> tuple[DeviceSnapshot, ...]:
    try:
        return () if driver is None else driver.read()
    except DriverLost:
        return ()


def _on_cpu(state: ServerSnapshot, devices: tuple[DeviceSnapshot, ...]) -> bool | None:
    if state.placement is not None and state.placement.no_gpu:
        return True
    return fell_back(state, devices)
