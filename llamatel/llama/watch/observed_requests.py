"""Requests derived from polls of the slots, for servers without a log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from llamatel.records import ObservedRequest, ServerInfo
from llamatel.snapshots import SlotState


class SlotTrace:
    """Follows slots from poll to poll. Not thread-safe.

    A request is reported once a poll no longer finds it in its slot. Requests between two polls are not seen, so
    this does not count requests.
    """

    def __init__(self) -> None:
        self._polled_at: float | None = None
        self._running: dict[int, tuple[ObservedRequest, float | None]] = {}
        """By slot, with the time of the last poll before the request was seen."""

    def observe(
        self, server: ServerInfo, slots: Iterable[SlotState], at: float, sent_at: float | None = None
    ) -> list[ObservedRequest]:
        """The requests that have finished since the previous poll.

        The poll was sent at Unix time ``sent_at`` (None: at ``at``) and its response arrived at ``at``: a request that
        is seen again has certainly run until ``sent_at``.
        """
        sent_at = at if sent_at is None else sent_at
        finished = []
        before, self._running = self._running, {}
        for slot in slots:
            known = before.pop(slot.id, None)
            if known is not None and (not slot.busy or slot.task != known[0].task):
                finished.append(_ended(*known, at))
                known = None
            if slot.busy and slot.task is not None:
                request, since = known or (ObservedRequest(server, slot.id, slot.task, at, at), self._polled_at)
                self._running[slot.id] = (_seen(request, slot, at if known is None else sent_at), since)
        self._polled_at = at
        return finished

    @property
    def running(self) -> list[ObservedRequest]:
        """The requests in flight at the last poll."""
        return [request for request, _ in self._running.values()]

    def idle(self, at: float) -> None:
        """Record that no request ran at Unix time ``at``: the next one starts later."""
        self._polled_at = at

    def forget(self) -> None:
        """Clear, before another process or a time without polls."""
        self._polled_at = None
        self._running.clear()


def _seen(request: ObservedRequest, slot: SlotState, at: float) -> ObservedRequest:
    prompt = request.prompt_tokens
    if slot.decoded and slot.prompt_computed is not None and slot.prompt_cached is not None:
        prompt = slot.prompt_computed + slot.prompt_cached
    return replace(request, last_seen_at=at, prompt_tokens=prompt, decoded=slot.decoded or request.decoded)


def _ended(request: ObservedRequest, since: float | None, at: float) -> ObservedRequest:
    return replace(request, longest_s=None if since is None else at - since)
