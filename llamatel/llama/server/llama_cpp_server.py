"""Runs llama-cpp-python's own server, instrumented, with llama-server's command line.

Started by the server manager as a process of its own: ``python -m llamatel.llama.server.llama_cpp_server FLAGS...``.
What the manager reads of other servers it finds here, too: ``listening on`` in the log, ``/health``, ``/metrics`` with
llama.cpp's names. A request that ended is one line of JSON in the log (``call_line``).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from llamatel.errors import UsageError
from llamatel.inputs.credentials import read_api_key
from llamatel.llama.in_process import LlamaCppInstrumentor
from llamatel.llama.in_process import loaded_llama as model
from llamatel.llama.log.call_line import call_line
from llamatel.llama.server.llama_cpp_flags import ServerOptions, parse
from llamatel.llama.server.server_command import API_KEY_VARIABLE

_Scope = MutableMapping[str, Any]
_App = Callable[[_Scope, Any, Any], Awaitable[None]]


class CallersSpan:
    """Makes the caller's span, out of its ``traceparent`` header, the current one while its request is worked on."""

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """One request."""
        from opentelemetry.context import attach, detach
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        token = attach(TraceContextTextMapPropagator().extract(headers))
        try:
            await self._app(scope, receive, send)
        finally:
            detach(token)


def _metrics() -> str:
    """The counters of the one model, as llama.cpp's ``/metrics`` has them."""
    lines = [
        f"llamacpp:{name} {value:.0f}"
        for source in model.sources()
        for state in source.snapshots()
        for name, value in state.counters.items()
    ]
    return "\n".join([*lines, ""])


def application(options: ServerOptions) -> Any:
    """llama-cpp-python's server as an ASGI application, with the model loaded."""
    from fastapi import Response
    from llama_cpp.server import app as its_own
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    key = read_api_key(options.api_key_file) if options.api_key_file else os.environ.get(API_KEY_VARIABLE)
    _close_streams(its_own)
    app = its_own.create_app(
        server_settings=ServerSettings(host=options.host, port=options.port, api_key=key),
        model_settings=[ModelSettings(**options.settings)],
    )

    async def health() -> dict[str, str]:
        return {"status": "ok"}

    async def metrics() -> Response:
        return Response(_metrics(), media_type="text/plain; version=0.0.4")

    app.add_api_route("/health", health)
    app.add_api_route("/metrics", metrics)
    app.add_middleware(CallersSpan)
    return app


def _close_streams(application: Any) -> None:
    """Have streams closed when their clients are gone: else they wait for Python's garbage collection."""
    publish = application.get_event_publisher

    async def closing(*, llama_call: Callable[..., Any], **others: Any) -> None:
        streams = []

        def call(*args: Any, **kwargs: Any) -> Any:
            streams.append(llama_call(*args, **kwargs))
            return streams[-1]

        try:
            await publish(llama_call=call, **others)
        finally:
            for stream in streams:
                stream.close()

    application.get_event_publisher = closing


def _listen(options: ServerOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((options.host, options.port))
    return listening


def _say(line: str) -> None:
    # In one piece: the log's other writers must not come in between.
    os.write(2, line.encode() + b"\n")


def _tell(source: model.ModelSource) -> None:
    source.subscribe(lambda completion: _say(call_line(completion)))


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM or SIGINT. Exit status: 0, or 1 for bad flags, a taken port and a model that cannot be."""
    # A signal while the model loads ends the process at once, as nothing needs tidying by then.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        options = parse(arguments)
        import llama_cpp
        import uvicorn

        _say(f"llama-cpp-python: wheel {llama_cpp.__version__}")
        listening = _listen(options)
        LlamaCppInstrumentor().instrument(skip_dep_check=True)
        model.on_load(_tell)
        app = application(options)
    except UsageError as error:
        _say(f"error: {error}")
        return 1
    except ImportError as error:
        _say(f"error: {error.name} is missing; install it with: pip install 'llama-cpp-python[server]'")
        return 1
    except OSError as error:
        _say(f"error: cannot listen on {options.host}:{options.port}: {error.strerror}")
        return 1
    except (RuntimeError, ValueError) as error:
        _say(f"error: {' '.join(str(error).split())}")
        return 1
    _serve(uvicorn, app, listening)
    return 0


def _serve(uvicorn: Any, app: Any, listening: socket.socket) -> None:
    host, port = listening.getsockname()[:2]

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            _say(f"server is listening on http://{f'[{host}]' if ':' in host else host}:{port}")

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    server = Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn's own handlers raise the signal again once all is tidied up: it then finds these.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server.run(sockets=[listening])
    # While Python tidies up it would put the default back in place of a handler, and a repeated signal end us by it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
