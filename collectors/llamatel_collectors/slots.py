"""Slots: busy or idle, their tokens, the progress of their requests, and requests that wait for a slot."""

from __future__ import annotations

from collections.abc import Iterator

from llamatel.collectors import Collector, Sample
from llamatel.records import ServerInfo
from llamatel.snapshots import SlotState, Snapshot


class SlotsCollector(Collector):
    """Busy and idle slots, waiting requests, the current token rate."""

    name = "slots"

    def on_snapshot(self, snapshot: Snapshot) -> Iterator[Sample]:
        """Samples of each server's slots; ``slot`` has as many values as the server has slots."""
        for state in snapshot.servers:
            for metric, value in (
                ("llamacpp.requests.deferred", state.deferred),
                ("llamacpp.decode.rate", state.decode_rate),
                ("llamacpp.decode.busy_slots", state.busy_slots_per_step),
                ("llamacpp.context_shifts", state.context_shifts),
            ):
                if value is not None:
                    yield Sample(metric, value, state.server)
            if state.slots is not None:
                busy = sum(slot.busy for slot in state.slots)
                yield Sample("llamacpp.slots", busy, state.server, {"state": "busy"})
                yield Sample("llamacpp.slots", len(state.slots) - busy, state.server, {"state": "idle"})
                for slot in state.slots:
                    yield from _slot(slot, state.server)


def _slot(slot: SlotState, server: ServerInfo) -> Iterator[Sample]:
    number = {"slot": slot.id}
    if slot.context_tokens is not None:
        yield Sample("llamacpp.slot.context_tokens", slot.context_tokens, server, number)
    if slot.context_size is not None:
        yield Sample("llamacpp.slot.context_size", slot.context_size, server, number)
    if slot.busy:
        for kind, tokens in (
            ("input_computed", slot.prompt_computed),
            ("input_cached", slot.prompt_cached),
            ("output", slot.decoded),
        ):
            if tokens is not None:
                yield Sample("llamacpp.slot.tokens", tokens, server, {**number, "type": kind})
