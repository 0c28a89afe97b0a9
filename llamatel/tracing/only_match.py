"""Matches calls and requests by elimination, if several fit each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Call = TypeVar("Call")
Request = TypeVar("Request")

_MOST = 16
"""Most calls that are compared with each other."""


def only_match(
    call: Call, fitting: Callable[[Call], Iterable[Request]], rivals: Callable[[Request], Iterable[Call]]
) -> Request | None:
    """Return the only request that ``call`` can be, given that each call is one of its matching requests.

    A call with only one matching request takes it, which may leave one request for another call. None if several
    remain, or if a call has none left: then a request is missing, and nothing is certain. Compared by identity.
    """
    calls = {id(call): call}
    requests: dict[int, Request] = {}
    options: dict[int, set[int]] = {}
    while len(options) < len(calls):
        key, one = next((key, one) for key, one in calls.items() if key not in options)
        found = {id(request): request for request in fitting(one)}
        options[key] = set(found)
        for request_key, request in found.items():
            if request_key not in requests:
                requests[request_key] = request
                calls.update((id(other), other) for other in rivals(request))
        if len(calls) > _MOST:
            return None
    taken: dict[int, int] = {}
    while (single := next((key for key, left in options.items() if len(left) == 1), None)) is not None:
        [taken[single]] = options.pop(single)
        for left in options.values():
            left.discard(taken[single])
    if not all(options.values()) or id(call) not in taken:
        return None
    return requests[taken[id(call)]]
