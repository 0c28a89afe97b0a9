"""Sources of ``top``'s document: a running llamatel, or llama.cpp servers polled by ``top`` itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import quote

from llamatel.errors import HttpError, ServerUnreachable
from llamatel.inputs.http import HttpClient
from llamatel.inputs.rotated_files import RotatedFiles
from llamatel.llama.watch.fleet import Access, Fleet
from llamatel.llama.watch.targets import Target, TargetFiles
from llamatel.snapshots import Snapshot
from llamatel.telemetry.settings import PAGE_TOKEN_VARIABLE
from llamatel.ui.live import Live
from llamatel.ui.top.live_schema import check_document
from llamatel.ui.view.text_page import printable

_TIMEOUT_S = 10.0
"""A llamatel that watches a busy server may need that server's whole timeout to answer."""
_PROBE_S = 1.0
_MAX_REASON = 500
_OURS = "llamatel: "
"""Start of the errors that a llamatel's page answers."""


class PageRefused(ServerUnreachable):
    """No llamatel serves its page here, or it needs a token."""


class Source(Protocol):
    """Supplies live documents (see ``llamatel.ui.live``)."""

    def document(self, focus: str | None) -> dict[str, Any]:
        """The state now, with the history of the server in ``focus``. Raises ServerUnreachable."""

    def close(self) -> None:
        """Release its connections and threads."""


class BackgroundFetch:
    """Fetches documents on its own thread, so keys work while a source is slow."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._thread: threading.Thread | None = None
        self._result: dict[str, Any] | ServerUnreachable | None = None

    @property
    def pending(self) -> bool:
        """Whether a result is still to be received."""
        return self._thread is not None

    def start(self, focus: str | None) -> None:
        """Fetch a document, unless a fetch is pending."""
        if self._thread is None:
            # A daemon thread: quitting does not wait for a server.
            self._thread = threading.Thread(target=self._run, args=(focus,), name="llamatel-top", daemon=True)
            self._thread.start()

    def result(self) -> dict[str, Any] | None:
        """The document, once; None while the fetch runs. Raises ServerUnreachable."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread = None
        result, self._result = self._result, None
        if isinstance(result, ServerUnreachable):
            raise result
        return result

    def _run(self, focus: str | None) -> None:
        try:
            self._result = self._source.document(focus)
        except ServerUnreachable as error:
            self._result = error


class LlamatelSource:
    """A llamatel that serves its page at ``url``; its document includes requests."""

    def __init__(self, url: str, token: str | RotatedFiles[str] | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/metrics")
        self._http = HttpClient(self.url, api_key=token)

    def document(self, focus: str | None, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
        """The state now. Raises ServerUnreachable if this is not a llamatel of this version."""
        query = "" if focus is None else f"?server={quote(focus, safe='')}"
        try:
            answer = self._http.request(f"/live.json{query}", total_s=timeout_s)
            text = answer.data[:_MAX_REASON].decode("utf-8", "replace")
            if answer.status in {401, 403} and text.startswith(_OURS):
                reason = f"{self.url}: {printable(_first_line(text))}"
                if answer.status == 401:
                    reason += f" (--page-token-file, or {PAGE_TOKEN_VARIABLE})"
                raise PageRefused(reason, status=answer.status)
            return check_document(answer.json())
        except HttpError as error:
            raise ServerUnreachable(f"{self.url} does not answer as llamatel does: {_first_line(error)}") from error
        except ValueError as error:
            raise ServerUnreachable(
                f"{self.url} is not a llamatel of this version: {error}", status=answer.status
            ) from error

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


class ServersSource:
    """llama.cpp servers, polled from here. Their requests are unknown: those are only in a log."""

    def __init__(self, targets: Sequence[Target], access: Access, interval_s: float = 1.0) -> None:
        """Raises ServerUnreachable if the only server rejects the API key."""
        self._live = Live()
        self._fleet = Fleet(TargetFiles((), list(targets)), access, interval_s=interval_s)
        if len(self._fleet.servers) == 1:
            self._fleet.servers[0].check()
        self._fleet.start()

    def document(self, focus: str | None) -> dict[str, Any]:
        """The state at the last poll."""
        states = tuple(state for server in self._fleet.servers for state in server.snapshots())
        snapshot = Snapshot(time.time(), states)
        self._live.observe(snapshot)
        return self._live.document(snapshot, focus)

    def close(self) -> None:
        """Stop polling."""
        self._fleet.stop()


def is_llamatel(url: str, token: str | RotatedFiles[str] | None, timeout_s: float = _PROBE_S) -> bool:
    """Whether a llamatel serves its page at ``url``; one that rejects the token counts."""
    source = LlamatelSource(url, token)
    try:
        source.document(None, timeout_s)
    except PageRefused:
        return True
    except ServerUnreachable:
        return False
    finally:
        source.close()
    return True


def _first_line(what: object) -> str:
    return (str(what).splitlines() or [""])[0].removeprefix(_OURS)
