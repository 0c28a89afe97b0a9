"""The schema check of a live document from another llamatel, before it is drawn on the terminal."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from llamatel.snapshots import DeviceSnapshot, KvCacheState, SlotState
from llamatel.ui.live import Live
from llamatel.ui.top.live_schema import check_document
from llamatel.ui.top.screen import Choices, plain_lines, screen
from tests.samples import completion, known_snapshot, snapshot

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 10**30, float("nan"), float("inf"), 1e300, "", "\x1b]0;x\x07\x1b[2J\u202e", "x" * 100_000, [], {},
    [[]], {"a": []}, [{"key": 1}], "2", 0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return observed_document()


def observed_document() -> dict[str, Any]:
    """A live document with a server, a request and a device."""
    slots = (SlotState(0, busy=True, context_size=64, context_tokens=9), SlotState(1, busy=False))
    state = known_snapshot(slots=slots, kv_cache=KvCacheState(active=9, cached=3, capacity=64))
    live = Live({"version": "1"})
    now = snapshot(state, devices=(DeviceSnapshot(taken_at=0.0, id="GPU-1", name="T4"),))
    live.observe(now)
    live(completion(server=state.server), "0" * 32)
    shown: dict[str, Any] = json.loads(json.dumps(live.document(now)))
    return shown


def draw(document: dict[str, Any]) -> str:
    """Everything that ``top`` draws of it."""
    views = (Choices(), Choices(order=2, sort=1), Choices(waterfall=True), Choices(filter=1))
    return "".join([*(screen(document, view, 110, 40).plain for view in views), *plain_lines(document)])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, one in inner for found in places(one, (*path, key)))]


def test_live_schema_accepts_own_document(document: dict[str, Any]) -> None:
    assert check_document(document) == document
    assert "T4" in draw(check_document(document))


def test_live_schema_rejects_or_draws_mutations(document: dict[str, Any]) -> None:
    random_numbers = random.Random(1)
    paths = [path for path in places(document) if path]
    rejected = drawn = 0
    for _ in range(3000):
        mutated = copy.deepcopy(document)
        for _ in range(random_numbers.randint(1, 2)):
            path = random_numbers.choice(paths)
            parent = mutated
            try:
                for key in path[:-1]:
                    parent = parent[key]
                if random_numbers.random() < 0.2:
                    del parent[path[-1]]
                else:
                    parent[path[-1]] = copy.deepcopy(random_numbers.choice(HOSTILE))
            except (LookupError, TypeError):  # the first mutation removed it
                continue
        try:
            checked = check_document(mutated)
        except ValueError:
            rejected += 1
            continue
        drawn += 1
        text = draw(checked)
        assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert rejected > 500
    assert drawn > 100


@pytest.mark.parametrize("value", [None, [], 1, "x", {}, {"version": 4}, {"version": "4"}])
def test_live_schema_rejects_other_json(value: object) -> None:
    with pytest.raises(ValueError, match=r"version|missing"):
        check_document(value)
