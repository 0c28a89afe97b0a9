"""Every error that llamatel raises on purpose, in one tree.

    LlamatelError
    ├── UsageError              the caller asked for something that cannot be (exit code 2)
    ├── BackendNotFound         no llama.cpp server could be found
    ├── ServerError             the server manager's errors
    │   ├── ServerStartError    the server died, or stayed silent, while starting
    │   ├── ServerStateError    the call does not fit the server's state (already started, ...)
    │   └── ServerTimeout       it did not become ready, or stop, in time
    ├── HttpError               an outgoing HTTP request failed; callers translate it
    ├── ServerUnreachable       an HTTP call to a server failed
    ├── RequestError            a request of LlamaCppClient failed
    │   ├── BadRequest          400: the server cannot take it
    │   │   └── ContextTooLong  its prompt does not fit into the context
    │   ├── NotAuthorized       401, 403: the API key is missing or wrong
    │   ├── NotSupported        404, 501: this server has it not, or was started without it
    │   ├── ServerNotReady            503: the model is loading
    │   ├── ServerFailure       500 and what else it answers
    │   ├── ConnectError            nobody listens, or the connection broke
    │   ├── RequestTimeout      no byte came in the time given
    │   └── InvalidResponse           what came is not what llama.cpp sends
    ├── LogSourceError          a log file or stream cannot be read
    ├── ExploreError            llama.cpp cannot be observed: not installed, not understood, or it died
    ├── GGUFError               a model file's header cannot be read
    │   └── ModelUnreachable    the Hub or the address that it is at cannot be asked
    ├── GrafanaError            a Grafana cannot be reached, or refuses
    └── PipelineError           telemetry could not be set up (address in use, missing exporter)

Messages are one line and say what to do. The command line prints them without a traceback and exits
with ``exit_code``.
"""

from __future__ import annotations


class LlamatelError(Exception):
    """Base of all llamatel errors. ``exit_code`` is what the command line exits with."""

    exit_code = 1


class UsageError(LlamatelError, ValueError):
    """The arguments do not fit together."""

    exit_code = 2


class BackendNotFound(LlamatelError):
    """No llama.cpp server was found; the message lists what was tried and the command that mends it."""


class ServerError(LlamatelError):
    """Base of the server manager's errors."""


class ServerStartError(ServerError):
    """The server ended while starting.

    ``log_tail`` holds its last log lines, oldest first; ``returncode`` its exit status (negative: signal).
    """

    def __init__(self, message: str, *, log_tail: tuple[str, ...] = (), returncode: int | None = None) -> None:
        super().__init__(message)
        self.log_tail = log_tail
        self.returncode = returncode


class ServerStateError(ServerError):
    """The call does not fit the state that the server is in."""


class ServerTimeout(ServerError, TimeoutError):
    """The server was not ready, or had not stopped, when the time was up."""


class HttpError(LlamatelError):
    """An outgoing HTTP request failed. The message says why in a few words (``connection refused``), without the URL.

    ``kind``: ``refused``, ``unreachable``, ``host_not_found``, ``connect_timeout``, ``tls`` or ``proxy`` (no connection
    was made); ``timeout``, ``closed`` (without a response), ``broken`` (within one), ``too_large`` or ``invalid``.
    ``status`` is the HTTP status, where one was received.
    """

    def __init__(self, message: str, *, kind: str, status: int | None = None, url: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.url = url

    @property
    def busy(self) -> bool:
        """Whether the server has the request and did not answer in time."""
        return self.kind == "timeout"

    @property
    def refused(self) -> bool:
        """Whether nothing accepts connections at the address."""
        return self.kind in ("refused", "unreachable", "host_not_found", "connect_timeout")


class ServerUnreachable(LlamatelError):
    """An HTTP request to a llama.cpp server failed or was refused.

    ``status`` is the HTTP status, or None where no answer came; ``busy`` if it took the request and did not answer in
    time, as a server does that is decoding.
    """

    def __init__(self, message: str, *, status: int | None = None, busy: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.busy = busy


class RequestError(LlamatelError):
    """A request of LlamaCppClient failed.

    ``status`` is the HTTP status, None where no answer came; ``kind`` is the server's own word for what is wrong, such
    as ``invalid_request_error``, else ours (``connection_error``, ``timeout``, ...): one of few.
    """

    def __init__(self, message: str, *, status: int | None = None, kind: str = "_OTHER") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class BadRequest(RequestError):
    """The server cannot take the request."""


class ContextTooLong(BadRequest):
    """The prompt does not fit into a slot's context.

    ``prompt_tokens`` and ``context_size`` are in tokens, ``excess`` what is too much; None where the server told no
    figures.
    """

    def __init__(
        self, message: str, *, status: int | None = None, kind: str = "exceed_context_size_error",
        prompt_tokens: int | None = None, context_size: int | None = None,
    ) -> None:  # fmt: skip
        self.prompt_tokens = prompt_tokens
        self.context_size = context_size
        self.excess = None if prompt_tokens is None or context_size is None else prompt_tokens - context_size
        super().__init__(message, status=status, kind=kind)


class NotAuthorized(RequestError):
    """The API key is missing or wrong."""


class NotSupported(RequestError):
    """This server does not have that, or was started without it."""


class ServerNotReady(RequestError):
    """The model is still loading."""


class ServerFailure(RequestError):
    """The server took the request and failed."""


class ConnectError(RequestError):
    """Nobody listens, or the connection broke before the answer was complete."""


class RequestTimeout(RequestError, TimeoutError):
    """The server sent nothing in the time given."""


class InvalidResponse(RequestError):
    """The answer is not what llama.cpp sends; perhaps something else listens at that address."""


class LogSourceError(LlamatelError):
    """A log file or stream cannot be read."""


class GGUFError(LlamatelError):
    """A model file's header cannot be read: it is no GGUF, is cut short, or says what cannot be.

    ``offset`` is the byte at which ``reading`` (what was being read) begins; None where it was not the content that
    failed. ``path`` is the file, or its address.
    """

    def __init__(
        self, message: str, *, offset: int | None = None, reading: str | None = None, path: str | None = None
    ) -> None:
        where = "" if offset is None else f" (at byte {offset}, reading {reading})"
        super().__init__(f"{path}: {message}{where}" if path else f"{message}{where}")
        self.message = message
        self.offset = offset
        self.reading = reading
        self.path = path


class ModelUnreachable(GGUFError):
    """The Hugging Face Hub, what HF_ENDPOINT names, or an address cannot be asked: no network, or nobody there."""


class ExploreError(LlamatelError):
    """A model's attention cannot be explored: llama-cpp-python is missing, not understood, or died."""


class PipelineError(LlamatelError):
    """Telemetry could not be set up."""


class GrafanaError(LlamatelError):
    """A Grafana cannot be reached, or refuses what was asked of it."""
