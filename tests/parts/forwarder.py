"""Many addresses for one server: TCP ports forwarded to its port, optionally with TLS.

So a few real servers stand for hundreds. ``python -m tests.parts.forwarder UPSTREAM NUMBER`` prints its ports, one a
line, and runs until SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import sys
import threading
from pathlib import Path
from types import TracebackType

_CHUNK = 1 << 16


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()


class Forwarder:
    """Ports of 127.0.0.1 forwarded to ``upstream``; a context manager."""

    def __init__(
        self, upstream: int, number: int = 1, *, certificate: Path | None = None, clients: Path | None = None
    ) -> None:
        """``certificate``: PEM file with certificate and key, for TLS; ``clients``: CA of client certificates."""
        self.ports: list[int] = []
        self._upstream = upstream
        self._number = number
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(certificate)
        if self._tls is not None and clients is not None:
            self._tls.verify_mode = ssl.CERT_REQUIRED
            self._tls.load_verify_locations(clients)
        self._loop = asyncio.new_event_loop()
        self._ready, self._stopped = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)

    def __enter__(self) -> Forwarder:
        self._thread.start()
        assert self._ready.wait(30), "the forwarder listens"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(30)
        self._loop.close()

    async def _run(self) -> None:
        servers = [await asyncio.start_server(self._handle, "127.0.0.1", 0, ssl=self._tls) for _ in range(self._number)]
        self.ports = [server.sockets[0].getsockname()[1] for server in servers]
        self._ready.set()
        await self._stopped.wait()
        for server in servers:
            server.close()
        running = asyncio.all_tasks() - {task for task in (asyncio.current_task(),) if task is not None}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(_pipe(reader, up_writer), _pipe(up_reader, writer))
        finally:
            up_writer.close()
            writer.close()


if __name__ == "__main__":
    with Forwarder(int(sys.argv[1]), int(sys.argv[2])) as forwarder:
        print(*forwarder.ports, "all", sep="\n", flush=True)
        signal.pause()
