"""An OpenTelemetry instrumentor for llama-cpp-python's ``Llama`` (entry point ``opentelemetry_instrumentor``).

It patches methods of the class and restores them. While ``llamatel.init()`` is active, calls go through its collectors
like servers' requests; under ``opentelemetry-instrument``, or with given providers, through the
instrumentor's own collectors. Nothing is exported on the calling thread: a call only creates a record.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined, unused-ignore]
from wrapt import register_post_import_hook

from llamatel import providers
from llamatel.llama.in_process import loaded_llama as model
from llamatel.llama.in_process import perf_counters as counters
from llamatel.llama.in_process.in_process_call import RunningCall

_log = logging.getLogger(__name__)

_MODULE = "llama_cpp.llama"


class _Thread(threading.local):
    """This thread's current calls; a nested call is part of the outer one."""

    calls: tuple[RunningCall, ...] = ()


_thread = _Thread()


class LlamaCppInstrumentor(BaseInstrumentor):  # type: ignore[misc, unused-ignore]
    """Traces and measures ``Llama``: completions, chats, streams and embeddings.

    ``instrument(tracer_provider=…, meter_provider=…)``: both default to the global ones. ``uninstrument()``
    restores everything; a running stream continues.
    """

    _originals: dict[str, Any]
    _llama: type | None = None
    _zero_code: Any = None
    _active = False

    def instrumentation_dependencies(self) -> Collection[str]:
        """Packages that it instruments."""
        return ("llama-cpp-python >= 0.3.0",)

    def _instrument(self, **kwargs: Any) -> None:
        self._active = True
        self._zero_code = providers.call("zero_code", kwargs.get("tracer_provider"), kwargs.get("meter_provider"))
        if _MODULE in sys.modules:
            self._patch(sys.modules[_MODULE])
        else:
            # Importing llama_cpp is slow, and not every instrumented program uses it.
            register_post_import_hook(self._patch, _MODULE)

    def _uninstrument(self, **kwargs: Any) -> None:
        self._active = False
        if self._llama is not None:
            for name, original in self._originals.items():
                setattr(self._llama, name, original)
            self._llama = None
        if self._zero_code is not None:
            self._zero_code.close()
            self._zero_code = None

    def _patch(self, module: Any) -> None:
        if not self._active or self._llama is not None:
            return
        llama = self._llama = module.Llama
        replacements: dict[str, Callable[[Any], Any]] = {
            "__init__": _loading,
            "generate": _generate,
            "create_completion": functools.partial(_request, operation="text_completion"),
            "create_chat_completion": functools.partial(_request, operation="chat"),
            "embed": functools.partial(_request, operation="embeddings"),
        }
        self._originals = {name: vars(llama)[name] for name in replacements}
        for name, replace in replacements.items():
            setattr(llama, name, replace(self._originals[name]))


def _loading(original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        _known(self)

    return __init__


def _known(llama: Any) -> tuple[model.LoadedModel, model.ModelSource] | None:
    try:
        return model.known(llama)
    except Exception:  # noqa: BLE001 - the boundary to an application that must not feel us
        _log.exception("a model of llama-cpp-python is not traced: it could not be inspected")
        return None


def _generate(original: Any) -> Any:
    @functools.wraps(original)
    def generate(self: Any, tokens: Any, *args: Any, **kwargs: Any) -> Iterator[int]:
        generated: Iterator[int] = original(self, tokens, *args, **kwargs)
        call = _thread.calls[-1] if _thread.calls else None
        return generated if call is None or call.llama is not self else call.follow(len(tokens), generated)

    return generate


def _request(original: Any, *, operation: str) -> Any:
    parameters = inspect.signature(original).parameters
    names = tuple(parameters)[1:]
    defaults = {name: each.default for name, each in parameters.items() if each.default is not inspect.Parameter.empty}

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(call.llama is self for call in _thread.calls):
            return original(self, *args, **kwargs)
        known = _known(self)
        if known is None:
            return original(self, *args, **kwargs)
        loaded, source = known
        arguments = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        call = RunningCall(self, operation, loaded, arguments)
        if arguments.get("stream"):
            with _Inside(call):
                try:
                    parts = original(self, *args, **kwargs)
                except BaseException as error:
                    _record(call, source, error)
                    raise
            return _stream(call, source, parts)
        before = counters.ZERO if getattr(self, "verbose", False) else counters.read(self)  # verbose resets them
        source.busy(self, 1)
        failure: BaseException | None = None
        try:
            with _Inside(call):
                response = original(self, *args, **kwargs)
            if operation == "embeddings":
                call.embed(before)
            call.answered(response)
        except BaseException as error:
            failure = error
            raise
        else:
            return response
        finally:
            source.busy(self, -1)
            _record(call, source, failure)

    return method


class _Inside:
    """Marks a call as current: nested calls on the same ``Llama`` are part of it."""

    __slots__ = ("_call", "_outer")

    def __init__(self, call: RunningCall) -> None:
        self._call = call

    def __enter__(self) -> None:
        self._outer = _thread.calls
        _thread.calls = (*self._outer, self._call)

    def __exit__(self, *_: object) -> None:
        _thread.calls = self._outer


def _stream(call: RunningCall, source: model.ModelSource, parts: Iterator[Any]) -> Iterator[Any]:
    """The parts of a stream; the call starts when the first is fetched, on the fetching thread."""
    call.begin()
    source.busy(call.llama, 1)
    failure: BaseException | None = None
    try:
        while True:
            with _Inside(call):
                try:
                    part = next(parts)
                except StopIteration:
                    return
            call.answered(part)
            yield part
    except BaseException as error:
        failure = error
        raise
    finally:
        close = getattr(parts, "close", None)
        if close is not None:
            close()
        source.busy(call.llama, -1)
        _record(call, source, failure)


def _record(call: RunningCall, source: model.ModelSource, error: BaseException | None) -> None:
    try:
        source.finished(call.end(source.server, error))
    except Exception:  # noqa: BLE001 - the boundary to an application that must not feel us
        _log.exception("a call of llama-cpp-python could not be recorded")
