"""Where ``top`` gets its document from: a llamatel that runs, or llama.cpp servers that it polls itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import quote

from llamatel.errors import HttpError, ServerUnreachable
from llamatel.inputs.http import HttpClient
from llamatel.llama.watch.fleet import Access, Fleet
from llamatel.llama.watch.targets import Target, TargetFiles
from llamatel.snapshots import Snapshot
from llamatel.ui.live import VERSION, Live

_TIMEOUT_S = 10.0
"""A llamatel that watches a busy server may take a server's whole time-out to answer."""
_PROBE_S = 1.0


class Source(Protocol):
    """Hands out live documents (see ``llamatel.ui.live``)."""

    def document(self, focus: str | None) -> dict[str, Any]:
        """The state now, with the history of the server that is named. Raises ServerUnreachable."""

    def close(self) -> None:
        """End."""


class Asking:
    """Asks a source on a thread of its own, so that keys are answered while it takes its time."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._thread: threading.Thread | None = None
        self._answer: dict[str, Any] | ServerUnreachable | None = None

    @property
    def under_way(self) -> bool:
        """Whether an answer is still to come, or to be taken."""
        return self._thread is not None

    def ask(self, focus: str | None) -> None:
        """Ask now, unless that is being done."""
        if self._thread is None:
            # A daemon: who quits does not wait for a server.
            self._thread = threading.Thread(target=self._run, args=(focus,), name="llamatel-top", daemon=True)
            self._thread.start()

    def take(self) -> dict[str, Any] | None:
        """The answer, if it has come. Raises ServerUnreachable."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread = None
        answer, self._answer = self._answer, None
        if isinstance(answer, ServerUnreachable):
            raise answer
        return answer

    def _run(self, focus: str | None) -> None:
        try:
            self._answer = self._source.document(focus)
        except ServerUnreachable as error:
            self._answer = error


class LlamatelSource:
    """A llamatel whose page answers at ``url``; it sees requests too."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/metrics")
        self._http = HttpClient(self.url, api_key=token)

    def document(self, focus: str | None, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
        """The state now. Raises ServerUnreachable where no llamatel of our kind answers."""
        query = "" if focus is None else f"?server={quote(focus, safe='')}"
        try:
            answer = self._http.request(f"/live.json{query}", total_s=timeout_s)
            document = answer.json() if answer.status == 200 else None
        except (HttpError, ValueError) as error:
            raise ServerUnreachable(f"{self.url} does not answer as llamatel does: {_first_line(error)}") from error
        if answer.status in {401, 403}:
            raise ServerUnreachable(f"{self.url}: {_first_line(answer.data.decode('utf-8', 'replace'))}", status=401)
        if not isinstance(document, dict) or document.get("version") != VERSION:
            raise ServerUnreachable(f"{self.url} is no llamatel of this version", status=answer.status)
        return document

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


class ServersSource:
    """llama.cpp servers, polled from here. Their requests are not seen: only a log tells of those."""

    def __init__(self, targets: Sequence[Target], access: Access, interval_s: float = 1.0) -> None:
        """Raises ServerUnreachable if there is one server only and it refuses the key."""
        self._live = Live()
        self._fleet = Fleet(TargetFiles((), list(targets)), access, interval_s=interval_s)
        if len(self._fleet.pollers) == 1:
            self._fleet.pollers[0].check()
        self._fleet.start()

    def document(self, focus: str | None) -> dict[str, Any]:
        """The state as it was polled last."""
        states = tuple(state for poller in self._fleet.pollers for state in poller.snapshots())
        snapshot = Snapshot(time.time(), states)
        self._live.observe(snapshot)
        return self._live.document(snapshot, focus)

    def close(self) -> None:
        """Poll no more."""
        self._fleet.stop()


def is_llamatel(url: str, token: str | None, timeout_s: float = _PROBE_S) -> bool:
    """Whether a llamatel's page answers there; one that refuses us is one, too."""
    source = LlamatelSource(url, token)
    try:
        source.document(None, timeout_s)
    except ServerUnreachable as error:
        return error.status == 401 and "llamatel" in str(error).removeprefix(source.url)
    finally:
        source.close()
    return True


def _first_line(what: object) -> str:
    return (str(what).splitlines() or [""])[0].removeprefix("llamatel: ")
