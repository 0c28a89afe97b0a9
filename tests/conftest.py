"""Fixtures: real parts, started for the tests that use them and stopped afterwards."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import hypothesis
import pytest

import llamatel
from llamatel import runtime
from llamatel.llama import ServerManager
from llamatel.llama.server import manager
from llamatel.llama.server.supervisor import ServerState
from llamatel.tracing import decorators as tracing
from tests.client_matrix import OtherProcess
from tests.parts import (
    MissingPart,
    OtlpSink,
    Prometheus,
    RotelAgent,
    chromium_program,
    free_port,
    in_ci,
    kill_survivors,
    llama_cpp_python,
    llama_server,
    prometheus_program,
    sid_llama_server,
    valgrind_program,
    vocabularies,
)
from tests.parts.processes import SESSION_MARK
from tests.recording import Recording
from tests.servers import BACKENDS, choose_backend, without_settings
from tests.tiny_gguf import write_tiny_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser

T = TypeVar("T")

# Started in the background (nohup, &, some CI runners), this process inherits an ignored SIGINT or SIGHUP, and so would
# every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The time of one example depends on the machine only.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def missing(error: MissingPart) -> NoReturn:
    """Skip with the command that fixes it; in CI a missing part fails the test."""
    if in_ci():
        raise error
    pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def processes() -> Iterator[None]:
    """Fail the session if a process started by a test is still running at its end."""
    os.environ[SESSION_MARK] = str(os.getpid())
    yield
    left = kill_survivors()
    assert not left, f"processes that tests left running: {left}"


@pytest.fixture(autouse=True)
def log_handlers() -> Iterator[None]:
    """Remove log handlers of commands run within a test: they write to that test's stderr."""
    loggers = [logging.getLogger(name) for name in ("llamatel", "llamatel_collectors", "opentelemetry")]
    before = [(logger.handlers, logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers = handlers
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def lost_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the counters, so that lines lost on purpose do not count in later tests."""
    monkeypatch.setattr("llamatel.outputs.appended_file._lost", Counter())


@pytest.fixture(autouse=True)
def failed_servers() -> Iterator[None]:
    """A server that failed in a test is not in the metrics of later tests, where something still refers to it."""
    yield
    for server in list(manager._managers):
        if server.state is ServerState.FAILED:
            manager._managers.discard(server)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF with random weights (0.5 MB) that llama.cpp's server loads immediately."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


def _get(request: pytest.FixtureRequest, part: Callable[[], T]) -> T:
    """Get a part, with its progress on the terminal, as the first time takes minutes."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            return part()
    except MissingPart as error:
        missing(error)


@pytest.fixture(scope="session")
def llama_server_binary(request: pytest.FixtureRequest) -> Path:
    """llama.cpp's llama-server; ``llama-fit-params`` is in the same folder."""
    return _get(request, llama_server)


@pytest.fixture(scope="session")
def sid_server(request: pytest.FixtureRequest) -> Path:
    """The newest llama-server of Debian's unstable suite; ``ggml-rpc-server`` is in the same folder."""
    return _get(request, sid_llama_server)


@pytest.fixture(scope="session")
def llama_cpp(request: pytest.FixtureRequest) -> None:
    """llama-cpp-python: ``import llama_cpp`` works in the test, and in programs that this Python runs."""
    _get(request, llama_cpp_python)


@pytest.fixture(scope="session")
def vocabulary_files(request: pytest.FixtureRequest) -> list[Path]:
    """The vocabulary-only GGUFs of llama.cpp's tests."""
    return _get(request, vocabularies)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """A backend for ServerManager; the test runs once for each llama.cpp server."""
    return choose_backend(request)


@pytest.fixture(scope="module", params=BACKENDS)
def chat_server(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[ServerManager]:
    """A running server of four slots for a module's tests, which run once for each llama.cpp server."""
    flags = ("-c", "8192", "-np", "4", "-t", "1", "--metrics", "--jinja")
    with ServerManager(backend=choose_backend(request)) as running:
        running.start_server(tiny_model, port=0, alias="tiny", extra_args=flags).wait_until_ready(60)
        yield running


@pytest.fixture
def telemetry(no_settings: None) -> Iterator[runtime.Runtime]:
    """``init()`` with kept spans."""
    yield llamatel.init(metrics_addr="none", keep_traces=True)
    llamatel.shutdown()


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply ``without_settings`` for the test."""
    without_settings(monkeypatch)


@pytest.fixture(scope="session")
def promtool(request: pytest.FixtureRequest) -> Path:
    """The promtool program."""
    return _get(request, lambda: prometheus_program("promtool"))


@pytest.fixture(scope="session")
def valgrind(request: pytest.FixtureRequest) -> Path:
    """The valgrind program."""
    return _get(request, valgrind_program)


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A headless Chromium for one module: meanwhile this thread has a running event loop."""
    from playwright.sync_api import sync_playwright

    path = _get(request, chromium_program)
    with sync_playwright() as driver:
        # Without a sandbox: tests may run as root and open only llamatel's pages.
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def prometheus(promtool: Path, tmp_path: Path) -> Iterator[Callable[[Mapping[str, Any]], Prometheus]]:
    """Start a Prometheus with a configuration (see ``scrape_config``); it is stopped after the test."""
    with contextlib.ExitStack() as running:
        yield lambda config: running.enter_context(Prometheus(config, tmp_path / f"prometheus-{free_port()}"))


@pytest.fixture
def otlp_sink() -> Iterator[OtlpSink]:
    """An OTLP/HTTP receiver that keeps what arrives."""
    with OtlpSink() as sink:
        yield sink


@pytest.fixture(scope="module")
def shared_sink() -> Iterator[OtlpSink]:
    """The same for all tests of a module."""
    with OtlpSink() as sink:
        yield sink


@pytest.fixture(scope="module")
def served(shared_sink: OtlpSink, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherProcess]:
    """A ``llamatel serve`` in another process that sends to ``shared_sink``."""
    running = OtherProcess(shared_sink, tiny_model, tmp_path_factory.mktemp("serving"))
    yield running
    running.child.stop()


@pytest.fixture
def rotel(otlp_sink: OtlpSink, tmp_path: Path) -> Iterator[RotelAgent]:
    """A running rotel that forwards to ``otlp_sink``."""
    agent = RotelAgent(otlp_sink, tmp_path)
    try:
        agent.start()
    except MissingPart as error:
        missing(error)
    yield agent
    agent.stop()


@pytest.fixture
def recorded() -> Iterator[Recording]:
    """Spans written by the decorators during the test."""
    recording = Recording()
    tracing.use(recording.tracer)
    yield recording
    tracing.use(None)
    recording.provider.shutdown()
