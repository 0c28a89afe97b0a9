"""One call of a ``Llama`` as a Completion.

A call may generate several times (chat formats that call tools do); each time is a pass, with a prefill and a decode.
Counters are llama.cpp's; timestamps are ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llamatel.llama.in_process import perf_counters as counters
from llamatel.llama.in_process.loaded_llama import Attributes, LoadedModel, is_closed
from llamatel.llama.in_process.perf_counters import Counters
from llamatel.records import Call, Completion, Outcome, Phase, ServerInfo

_REQUEST = (
    "max_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed", "stream",
)  # fmt: skip
"""Arguments with a ``gen_ai.request.*`` name in the GenAI conventions."""


@dataclass(slots=True)
class _Pass:
    """One generation. Times are Unix seconds."""

    prompt: int
    started_at: float
    before: Counters | None
    first: Counters | None = None
    first_at: float | None = None
    last: Counters | None = None
    last_at: float | None = None
    sampled: int = 0
    ended_by_model: bool = False

    @property
    def computed(self) -> int | None:
        """Prompt tokens that were computed: the rest was in the KV cache."""
        return None if self.first is None or self.before is None else self.first.since(self.before).tokens

    @property
    def decode_s(self) -> float | None:
        return None if self.last is None or self.first is None else self.last.since(self.first).seconds

    def phases(self, ended_at: float) -> Iterator[Phase]:
        """Prefill, to the first token; decode, from there to the last."""
        yield Phase("prefill", self.started_at, self.first_at or ended_at)
        if self.first_at is not None and self.last_at is not None and self.sampled > 1:
            yield Phase("decode", self.first_at, self.last_at)


class RunningCall:
    """A started call. Used by one thread at a time."""

    def __init__(self, llama: Any, operation: str, model: LoadedModel, arguments: Mapping[str, Any]) -> None:
        self.llama = llama
        self.operation = operation
        self._model = model
        self._attributes = _request(arguments)
        self._traceparent = _traceparent()
        self._passes: list[_Pass] = []
        self._response_id: str | None = None
        self._finish_reasons: tuple[str, ...] = ()
        self._clock = time.time() - time.perf_counter()
        self.started_at = self._active_at = self._now()

    def _now(self) -> float:
        return self._clock + time.perf_counter()

    def begin(self) -> None:
        """Start the clock; for a stream when its first part is fetched, unless creating it already did work."""
        if not self._passes:
            self.started_at = self._active_at = self._now()

    def follow(self, prompt: int, tokens: Iterator[int]) -> Iterator[int]:
        """Yield the tokens of one generation, and read the counters at its first token and at its end."""
        one = _Pass(prompt, self._now(), counters.read(self.llama))
        self._passes.append(one)
        thread = get_ident()
        token = None
        try:
            for token in tokens:
                thread = get_ident()
                one.sampled += 1
                one.last_at = self._now()
                if one.sampled == 1:
                    one.first_at = one.last_at
                    one.first = counters.read(self.llama)
                yield token
        finally:
            # An abandoned stream is closed by the thread that collects garbage, possibly after its model was freed:
            # read llama.cpp's counters on the thread that used it, or not at all.
            if thread == get_ident() and not is_closed(self.llama):
                one.last = counters.read(self.llama)
                one.ended_by_model = token is not None and _ends(self.llama, token)

    def embed(self, before: Counters | None) -> None:
        """Record an embedding: the whole call is prefill."""
        one = _Pass(0, self.started_at, before, counters.read(self.llama), self._now())
        one.prompt = one.computed or 0
        self._passes.append(one)

    def answered(self, response: object) -> None:
        """Record from a response, or a part of one, the attributes of the conventions; never text."""
        self._active_at = self._now()
        if not isinstance(response, Mapping):
            return
        self._response_id = response.get("id", self._response_id)
        choices = response.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            reason = choice.get("finish_reason")
            if isinstance(reason, str):
                self._finish_reasons = (*self._finish_reasons, reason)

    def end(self, server: ServerInfo, error: BaseException | None = None) -> Completion:
        """Finish the call. A dropped stream finished with its last part: when it was freed is unknown."""
        ended_at = self._active_at if isinstance(error, GeneratorExit) else self._now()
        embedding = self.operation == "embeddings"
        outcome, text, kind = _outcome(error)
        prompt = sum(one.prompt for one in self._passes) if self._passes else None
        computed = _sum(one.computed for one in self._passes)
        sampled = sum(one.sampled for one in self._passes)
        first_at = self._passes[0].first_at if self._passes else None
        context = int(self.llama.n_tokens)
        attributes = self._attributes | self._model.attributes(context)
        if self._response_id is not None:
            attributes["gen_ai.response.id"] = self._response_id
        if self._finish_reasons:
            attributes["gen_ai.response.finish_reasons"] = self._finish_reasons
        if first_at is not None and self._attributes.get("gen_ai.request.stream"):
            attributes["gen_ai.response.time_to_first_chunk"] = first_at - self.started_at
        decoded = bool(self._passes) and not embedding
        return Completion(
            server=server,
            slot=None,
            task=None,
            started_at=self.started_at,
            ended_at=ended_at,
            outcome=outcome,
            error=text,
            prefill_s=_sum(
                None if one.first is None or one.before is None else one.first.since(one.before).seconds
                for one in self._passes
            ),
            decode_s=_sum(one.decode_s for one in self._passes) if decoded else None,
            first_token_at=None if embedding else first_at,
            prompt_computed=computed,
            prompt_cached=None if computed is None or prompt is None else max(prompt - computed, 0),
            generated=sampled - sum(one.ended_by_model for one in self._passes) if decoded else None,
            context_tokens=None if embedding else context,
            call=Call(
                self.operation,
                phases=tuple(phase for one in self._passes for phase in one.phases(ended_at)),
                sampled=sampled if decoded else None,
                attributes=attributes,
                traceparent=self._traceparent,
                error_type=kind,
            ),
        )


def _outcome(error: BaseException | None) -> tuple[Outcome, str | None, str | None]:
    if error is None:
        return Outcome.OK, None, None
    if isinstance(error, (GeneratorExit, KeyboardInterrupt)):
        return Outcome.CANCELLED, None, None
    return Outcome.ERROR, " ".join(str(error).split()) or type(error).__name__, type(error).__qualname__


def _sum(values: Iterator[Any]) -> Any:
    """The sum; None if one of them is unknown, or there is none."""
    known = list(values)
    return None if not known or any(value is None for value in known) else sum(known)


def _request(arguments: Mapping[str, Any]) -> Attributes:
    attributes: Attributes = {}
    for name in _REQUEST:
        value = arguments.get(name)
        if isinstance(value, (bool, int, float)) and not (name == "max_tokens" and value <= 0):
            attributes[f"gen_ai.request.{name}"] = value
    if not attributes.get("gen_ai.request.stream"):
        attributes.pop("gen_ai.request.stream", None)
    stop = arguments.get("stop")
    if isinstance(stop, str) or (isinstance(stop, list) and stop):
        attributes["gen_ai.request.stop_sequences"] = (stop,) if isinstance(stop, str) else tuple(map(str, stop))
    return attributes


def _traceparent() -> str | None:
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def _ends(llama: Any, token: int) -> bool:
    """Whether a token ends the generation, and so is not part of the answer."""
    import llama_cpp

    return bool(llama_cpp.llama_vocab_is_eog(llama._model.vocab, token))
