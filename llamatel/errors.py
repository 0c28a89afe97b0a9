"""All exceptions that llamatel raises, in one tree.

    LlamatelError
    ├── UsageError              invalid arguments (exit code 2)
    ├── BackendNotFound         no llama.cpp server was found
    ├── ServerError             errors of the server manager
    │   ├── ServerStartError    the server exited, or stayed silent, while starting
    │   ├── ServerStateError    the call does not fit the server's state (already started, ...)
    │   └── ServerTimeout       the server did not become ready, or stop, in time
    ├── HttpError               an outgoing HTTP request failed; callers translate it
    ├── ServerUnreachable       an HTTP request to a server failed
    ├── RequestError            a request of LlamaCppClient failed
    │   ├── BadRequest          400: the server rejected it
    │   │   └── ContextTooLong  the prompt does not fit into the context
    │   ├── NotAuthorized       401, 403: the API key is missing or wrong
    │   ├── NotSupported        404, 501: this server does not have it, or was started without it
    │   ├── ServerNotReady      503: the model is loading
    │   ├── ServerFailure       500 and other statuses
    │   ├── ConnectError        connection refused or broken
    │   ├── RequestTimeout      no byte was received in time
    │   └── InvalidResponse     the response is not llama.cpp's
    ├── LogSourceError          a log file or stream cannot be read
    ├── ExploreError            llama-cpp-python is not installed, not supported, or exited
    ├── GGUFError               a model file's header cannot be read
    │   └── ModelUnreachable    the Hub or the URL cannot be reached
    ├── GrafanaError            Grafana cannot be reached, or rejected the request
    └── PipelineError           telemetry could not be set up (address in use, missing exporter)

Messages are one line, with what to do. The command line prints them without a traceback and exits
with ``exit_code``.
"""

from __future__ import annotations

import re

INSTALL_FROM = "."
"""The source for pip: a clone, until ``llamatel`` is on PyPI. Documents are tested against it."""


def install_command(extra: str) -> str:
    """The command that installs an extra."""
    place = " in a clone of llamatel" if INSTALL_FROM == "." else ""
    return f"pip install '{INSTALL_FROM}[{extra}]'{place}"


def one_line(text: str) -> str:
    """Untrusted text on one line, without terminal control characters."""
    return "".join(letter if letter.isprintable() else " " if letter in "\r\n\t" else "?" for letter in text)


_URL_START = re.compile(r"\W{0,4}(?:[A-Za-z][A-Za-z0-9+.-]{0,15}:/{1,2})?")
_SECRET_NAMES = ("key", "token", "password", "secret", "authorization")
_PUNCTUATION = ".,:;)]'\""


def redacted(text: str) -> str:
    """A message without user and password of URLs, their queries, and values of ``--api-key=K`` and the like."""
    if not any(mark in text for mark in "@=?#"):
        return text
    return "".join(map(_redacted_word, re.split(r"(\s+)", text)))


def _redacted_word(word: str) -> str:
    head, at, rest = word.rpartition("@")
    start = _URL_START.match(head)
    if at and ":" in head and start is not None:
        word = f"{start.group()}...@{rest}"
    if (query := re.search("[?#]", word)) is not None and ":/" in word:
        return word[: query.end()] + _hidden(word[query.end() :])
    name, equals, value = word.partition("=")
    if equals and name.lower().endswith(_SECRET_NAMES):
        return f"{name}={_hidden(value)}"
    return word


def _hidden(value: str) -> str:
    """Dots for a value; punctuation of the sentence around it is kept."""
    bare = value.rstrip(_PUNCTUATION)
    return "..." + value[len(bare) :] if bare else value


def shown_line(text: str) -> str:
    """A message for display: on one line, without credentials."""
    return one_line(redacted(text))


class LlamatelError(Exception):
    """Base of all llamatel errors. ``exit_code`` is what the command line exits with."""

    exit_code = 1

    def __str__(self) -> str:
        """The message on one line, without credentials: it may quote a file, a response or a URL."""
        return shown_line(super().__str__())


class UsageError(LlamatelError, ValueError):
    """Invalid arguments."""

    exit_code = 2


class BackendNotFound(LlamatelError):
    """No llama.cpp server was found; the message lists what was tried and the command that fixes it."""


class ServerError(LlamatelError):
    """Base of the server manager's errors."""


class ServerStartError(ServerError):
    """The server exited while starting.

    ``log_tail`` holds its last log lines, oldest first; ``returncode`` its exit status (negative: signal).
    """

    def __init__(self, message: str, *, log_tail: tuple[str, ...] = (), returncode: int | None = None) -> None:
        super().__init__(message)
        self.log_tail = log_tail
        self.returncode = returncode


class ServerStateError(ServerError):
    """The call does not fit the server's state."""


class ServerTimeout(ServerError, TimeoutError):
    """The server did not become ready, or stop, in time."""


class HttpError(LlamatelError):
    """An outgoing HTTP request failed. The message is the reason in a few words (``connection refused``), without URL.

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
        """Whether the server has the request and did not respond in time."""
        return self.kind == "timeout"

    @property
    def refused(self) -> bool:
        """Whether nothing accepts connections at the address."""
        return self.kind in ("refused", "unreachable", "host_not_found", "connect_timeout")


class ServerUnreachable(LlamatelError):
    """An HTTP request to a llama.cpp server failed.

    ``status`` is the HTTP status, None without a response; ``busy`` if the server accepted the request and did not
    respond in time, as it does while decoding.
    """

    def __init__(self, message: str, *, status: int | None = None, busy: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.busy = busy


class RequestError(LlamatelError):
    """A request of LlamaCppClient failed.

    ``status`` is the HTTP status, None without a response; ``kind`` is the server's error type, such as
    ``invalid_request_error``, else llamatel's (``connection_error``, ``timeout``, ...).
    """

    def __init__(self, message: str, *, status: int | None = None, kind: str = "_OTHER") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class BadRequest(RequestError):
    """The server rejected the request."""


class ContextTooLong(BadRequest):
    """The prompt does not fit into a slot's context.

    ``prompt_tokens`` and ``context_size`` are in tokens, ``excess`` is their difference; None if the server did not
    report them.
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
    """The server does not have this endpoint, or was started without it."""


class ServerNotReady(RequestError):
    """The model is still loading."""


class ServerFailure(RequestError):
    """The server failed to process the request."""


class ConnectError(RequestError):
    """Connection refused, or broken before the response was complete."""


class RequestTimeout(RequestError, TimeoutError):
    """The server sent nothing within the timeout."""


class InvalidResponse(RequestError):
    """The response is not llama.cpp's; another program may listen at that address."""


class LogSourceError(LlamatelError):
    """A log file or stream cannot be read."""


class GGUFError(LlamatelError):
    """A model file's header cannot be read: not a GGUF, truncated, or invalid.

    ``offset`` is the byte where ``reading`` (the item being read) starts; None if the content is not the problem.
    ``path`` is the file or URL.
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
    """The Hugging Face Hub (or HF_ENDPOINT), or a URL, cannot be reached."""


class ExploreError(LlamatelError):
    """A model's attention cannot be explored: llama-cpp-python is missing, not supported, or exited."""


class PipelineError(LlamatelError):
    """Telemetry could not be set up."""


class GrafanaError(LlamatelError):
    """Grafana cannot be reached, or rejected the request."""
