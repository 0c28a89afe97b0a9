"""The outcome of a poll, including failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llamatel.errors import ServerUnreachable
from llamatel.llama.http.identify import NotIdentified, NotLlamaCpp
from llamatel.llama.watch.server_lifecycle import Lifecycle

_NO_SERVER_STATUS = (502, 504)
_NOT_KNOWN_STATUS = (401, 403, 407, 429)
"""What a proxy may answer in front of a server that is up."""
_OTHER_PROGRAM_STATUS = (204, 400, 404, 405)
_NO_SERVER = "the proxy in front of it finds no server"


@dataclass(frozen=True, slots=True)
class PollOutcome:
    """The outcome of a poll."""

    life: Lifecycle | None = None
    up: bool | None = None
    state: str | None = None
    stale: bool = False


def failed_poll(
    error: ServerUnreachable,
    life: Lifecycle | None,
    *,
    is_alive: Callable[[], bool],
    again: bool = False,
    was_up: bool = False,
) -> PollOutcome:
    """The outcome of an error.

    ``is_alive``: whether a server that timed out is working nevertheless; ``again``: whether the status is that of the
    last poll; ``was_up``: whether llama.cpp has answered there before.
    """
    if error.status == 503:
        # llama.cpp is loading, or a proxy in front of it finds no server: not usable yet in either case.
        return PollOutcome(life, up=False, state="starting")
    if isinstance(error, NotLlamaCpp):
        # Where llama.cpp was, a proxy's error page or another program means that it is down.
        return PollOutcome(life, up=False if was_up else None)
    if error.status is not None:
        # llama.cpp itself sends only 401, and not for /health; else it is another program, or a proxy without a server.
        if (error.status == 401 and not isinstance(error, NotIdentified)) or life is not None:
            return PollOutcome(life, up=True)
        lacking = error.status in _NO_SERVER_STATUS or (again and error.status not in _NOT_KNOWN_STATUS)
        return PollOutcome(life, up=False if lacking else None)
    if error.busy and is_alive():
        return PollOutcome(life, up=True, state="ready", stale=True)
    return PollOutcome(life, up=False, state=None if life is None else life.state)


def refusal(url: str | None, status: int, looks: str = "") -> str:
    """A one-line explanation of an unexpected status. ``looks``: see NotIdentified."""
    hints = {
        200: "with something that llama.cpp does not send",
        401: "the API key is missing or wrong: use --api-key-file",
        403: "the proxy in front of it forbids it",
        404: "no llama.cpp server, or the path is wrong",
        400: "no llama.cpp server, or not its protocol",
        405: "no llama.cpp server, or the path is wrong",
        204: "no llama.cpp server, or the path is wrong",
        502: _NO_SERVER,
        504: _NO_SERVER,
    }
    seen = f" (it looks like {looks})" if looks and status in _OTHER_PROGRAM_STATUS else ""
    return f"{url} answered {status}: {hints.get(status, 'see its log')}{seen}"
