"""Decides whether a server's request may be a client's call, from the data of both."""

from __future__ import annotations

from llamatel.records import FAILED, ClientCall, Completion, GroupedCall, Outcome
from llamatel.tracing.semconv import operation
from llamatel.tracing.server_addresses import ServerAddresses, endpoint_of

CLOCK_S = 0.25
"""Most difference between the log's time and the wall clock; in practice it is much less."""
_BUSY_CLIENT_S = 2.0
"""Most delay until a client's thread sees the headers of a stream."""
_ROUNDED_S = 0.0000051
"""Half of the log's 0.01 ms, and floating-point error."""
_EXACT_S = 0.0000006
"""The same if the log has microseconds."""
_REFINED_S2_PER_TOKEN = 7e-5
"""Up to here the rate on a time's line gives its microseconds (``llama.log.logged_request``)."""
NOTICED_S = 1.2
"""llama.cpp checks once a second whether its client is still connected."""


def may_be(call: ClientCall, completion: Completion, addresses: ServerAddresses) -> bool:
    """Whether addresses and times allow it."""
    late = CLOCK_S if call.outcome is Outcome.OK or server_failed(call) else NOTICED_S + CLOCK_S
    if completion.started_at < call.sent_at - CLOCK_S or completion.ended_at > call.ended_at + late:
        return False
    server = addresses.server(endpoint_of(call.server))
    return call.has_timings if server is None else server == endpoint_of(completion.server)


def agree(call: ClientCall, completion: Completion, addresses: ServerAddresses) -> bool:
    """Whether a request may be a call: by address, time, outcome, and all figures that both have."""
    if call.outcome is not Outcome.OK:
        return may_be(call, completion, addresses) and _broke_off(call, completion)
    # The figures first: they are quick to compare, and exclude most.
    if call.tasks == 1 and (
        completion.is_child
        or _differ(call.slot, completion.slot)
        or _differ(call.output_tokens, completion.generated)
        or _differ(call.prompt_computed, completion.prompt_computed)
        or _differ(call.cached_tokens, completion.prompt_cached)
        or _differ(call.prefill_s, completion.prefill_s, _prefill_error(completion))
        or _differ(call.decode_s, completion.decode_s, _error(completion.decode_s))
        or _differ(call.input_tokens, completion.prompt_tokens if call.generates else completion.context_tokens)
    ):
        return False
    if isinstance(completion, GroupedCall) and (
        completion.tasks > call.tasks
        or (completion.tasks == call.tasks and _differ(call.input_tokens, completion.prompt_tokens))
    ):
        return False
    if completion.outcome is not Outcome.OK or (operation(completion) == "generate_content") != call.generates:
        return False
    return may_be(call, completion, addresses)


def completed_unread(call: ClientCall, completion: Completion, addresses: ServerAddresses) -> bool:
    """Whether a completed request may be a call that its client aborted, or did not read to its end."""
    if call.outcome is Outcome.OK or server_failed(call) or completion.outcome is not Outcome.OK:
        return False
    in_time = (
        completion.ended_at >= call.ended_at - CLOCK_S
        if call.headers_at is None
        else started_stream(call.headers_at, completion)
    )
    return in_time and may_be(call, completion, addresses)


def _error(seconds: float | None) -> float:
    """The error of a time in the log; times with microseconds are exact."""
    microseconds = (seconds or 0.0) * 1e6
    return _EXACT_S if abs(microseconds - round(microseconds, -1)) > 0.5 else _ROUNDED_S


def _prefill_error(completion: Completion) -> float:
    """The same; where the decode time has microseconds, a short prefill time has them too, though they may be zero."""
    seconds, tokens = completion.prefill_s or 0.0, completion.prompt_computed or 0
    refined = seconds * seconds < _REFINED_S2_PER_TOKEN * tokens and completion.decode_s is not None
    return min(_error(seconds), _error(completion.decode_s)) if refined else _error(seconds)


def _differ(ours: float | None, theirs: float | None, by: float = 0) -> bool:
    return ours is not None and theirs is not None and abs(ours - theirs) > by


def server_failed(call: ClientCall) -> bool:
    """Whether the server sent an error, as opposed to the client disconnecting."""
    return call.outcome is Outcome.ERROR and call.http_status is not None


def _broke_off(call: ClientCall, completion: Completion) -> bool:
    """Whether a request that did not complete may be a call that did not."""
    if server_failed(call):
        if completion.outcome not in FAILED:
            return False
    elif call.outcome is Outcome.ERROR and completion.outcome is Outcome.ERROR:  # the server exited
        pass
    elif completion.outcome is not Outcome.CANCELLED or completion.ended_at < call.ended_at - CLOCK_S:
        return False
    return call.headers_at is None or started_stream(call.headers_at, completion)


def started_stream(headers_at: float, completion: Completion) -> bool:
    """Whether a stream's headers may mark the start of this request: a busy client sees them late."""
    return -CLOCK_S <= headers_at - completion.started_at <= _BUSY_CLIENT_S
