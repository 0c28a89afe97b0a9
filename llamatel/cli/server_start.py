"""Starts a server with progress on the terminal, and describes it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from llamatel.cli.options import verbosity
from llamatel.cli.telemetry_options import otlp_line, page_line
from llamatel.errors import ServerError
from llamatel.llama.server.manager import ServerManager
from llamatel.runtime import Runtime
from llamatel.ui.view import kv_cache_line


def load_model(
    server: ServerManager, model: str | None, notes: Console, *, ready_timeout: float | None = None, **arguments: Any
) -> float:
    """Start the server and wait until it is ready; a spinner on a terminal, else a line. Returns the seconds."""
    name = Path(model).name if model else "what llama-server's own flags name"
    start = time.monotonic()
    if notes.is_terminal:
        columns = (SpinnerColumn("line"), TextColumn("loading {task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=notes, transient=True) as progress:
            progress.add_task(name, total=None)
            server.start_server(model, **arguments)
            server.wait_until_ready(ready_timeout)
    else:
        notes.print(f"llamatel: loading {name}", soft_wrap=True)
        server.start_server(model, **arguments)
        server.wait_until_ready(ready_timeout)
    return time.monotonic() - start


def wait_for_end(server: ServerManager) -> NoReturn:
    """Wait for a signal (raises Interrupted) or for the server's final exit (raises ServerError)."""
    server.wait()
    raise ServerError(server.failure or "the server has exited")


def kv_cache_of(server: ServerManager) -> str | None:
    """The content of the KV cache in one line; None where unknown."""
    state = server.snapshot()
    return None if state is None else kv_cache_line(state)


def server_lines(server: ServerManager, running: Runtime) -> dict[str, str | None]:
    """The description of a started server, for ``telemetry_options.columns``."""
    backend = server.backend
    return {
        "server": f"{server.base_url}  {server.info.model or ''}".rstrip(),
        "llama.cpp": " ".join(filter(None, (backend.name, server.info.build or backend.version))) if backend else None,
        "because": "; ".join((backend.why, *backend.rejected)) if backend and verbosity() else None,
        "KV cache": kv_cache_of(server),
        "metrics": running.pipeline.metrics_url or "off",
        "page": page_line(running),
        "OTLP": otlp_line(running.settings),
    }
