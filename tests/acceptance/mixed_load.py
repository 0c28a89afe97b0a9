"""Causes of lost prompts under random loads of conversations and unrelated prompts: how many are wrong."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import urllib3

from llamatel.llama import ServerManager
from llamatel.models import tiny_model
from llamatel.records import Completion, RecomputeCause
from tests.exact.models import MODELS
from tests.exact.writer import read_table, write_model
from tests.parts import llama_server, wait_until

C = RecomputeCause
REQUESTS = 100
_Server = tuple[str, str, int, "set[RecomputeCause]"]
_SERVERS: tuple[_Server, ...] = (
    ("tiny", "--cache-ram 0", 1, {C.SLOT_TAKEN}),
    ("tiny", "--cache-ram 0", 2, {C.SLOT_TAKEN}),
    ("tiny", "--cache-ram 0", 4, {C.SLOT_TAKEN}),
    ("tiny", "", 2, set()),
    ("tiny", "--kv-unified --cache-ram 0", 4, {C.SLOT_TAKEN, C.CACHE_CLEARED}),
    ("llama", "--cache-ram 1", 2, {C.PROMPT_CACHE_MISS}),
)
"""Model, flags, slots, and the only causes that a prompt can be lost for; besides those, clients change prompts."""
_LOADS = ((0.0, 0), (0.4, 0), (1.0, 0), (0.4, 60), (1.0, 60))
"""Share of unrelated prompts, and tokens of a system prompt that all prompts start with."""
_FEW = 8
"""Tokens that prompts share by accident."""


class Sent(NamedTuple):
    """A request as the client counts it."""

    lost: int
    """Tokens that the server once had and computed."""
    changed: bool
    """Whether the client changed tokens of the conversation's cache."""


@dataclass
class Client:
    """Conversations and unrelated prompts of random lengths, one after the other."""

    url: str
    share: float
    system: list[int]
    numbers: random.Random
    http: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(retries=False))
    conversations: list[list[int]] = field(default_factory=list)
    cached: list[list[int]] = field(default_factory=list)
    """All that the server's cache ever had."""

    def send(self) -> Sent:
        """The next request."""
        numbers, changed = self.numbers, False
        new = numbers.random() < self.share or not self.conversations
        prompt = [*self.system, *self._tokens(80, 500)]
        if not new and (len(self.conversations) > 4 or numbers.random() < 0.85):
            prompt = self.conversations.pop(numbers.randrange(len(self.conversations)))
            if numbers.random() < 0.15:
                at, changed = numbers.randrange(70, len(prompt) - 5), True
                prompt[at] = 10 + (prompt[at] - 9) % 50
            prompt += self._tokens(10, 150)
        body = {"prompt": prompt, "n_predict": numbers.randrange(3, 40), "ignore_eos": True, "return_tokens": True}
        answer = self.http.request("POST", f"{self.url}/completion", json=body, timeout=120)
        assert answer.status == 200, answer.data
        found = answer.json()
        held = max((_common(prompt, cached) for cached in self.cached), default=0)
        self.cached.append([*prompt, *found["tokens"]][:-1])
        if len(prompt) < 780 and (not new or numbers.random() >= self.share):
            self.conversations.append([*prompt, *found["tokens"]])
        return Sent(min(held, len(prompt) - 1) - int(found["timings"]["cache_n"]), changed)

    def _tokens(self, least: int, most: int) -> list[int]:
        return [self.numbers.randrange(10, 60) for _ in range(self.numbers.randrange(least, most))]


def _common(first: list[int], second: list[int]) -> int:
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _run(model: Path, each: _Server, share: float, system: int) -> Counter[str]:
    """Results of one load: nothing lost, lost and unknown, lost and right, wrong."""
    _, flags, slots, causes = each
    records: list[Completion] = []
    numbers, results = random.Random(f"{flags} {slots} {share} {system}"), Counter[str]()
    with ServerManager(backend=str(llama_server())) as server:
        server.subscribe(records.append)
        server.start_server(
            model, port=0, n_parallel=slots, ctx_size=4096 * slots, extra_args=["-t", "1", *flags.split()]
        )
        server.wait_until_ready(60)
        wait_until(lambda: (state := server.snapshot()) is not None and state.model is not None, 60, "the model")
        assert server.base_url
        client = Client(server.base_url, share, [numbers.randrange(10, 60) for _ in range(system)], numbers)
        for number in range(REQUESTS):
            sent = client.send()
            wait_until(lambda: len(records) > number, 60, "the request's record")  # noqa: B023 - called at once
            true = causes if sent.lost > _FEW else set()
            found = records[number].recompute_cause
            if found in (None, C.UNKNOWN):
                results["unknown" if true else "none"] += 1
            elif found in true or (found is C.PREFIX_CHANGED and sent.changed):
                results["right"] += 1
            else:
                results["wrong"] += 1
                print(f"{flags} -np {slots}, {share:.0%} unrelated: request {number}: {found}, {sent}", flush=True)
    return results


def run(folder: Path) -> dict[str, Any]:
    """Requests by result, for each server and load; at most one of a thousand may have a wrong cause."""
    known = {model.name: model for model in MODELS}
    file = write_model(folder / "llama.gguf", known["llama"], read_table()["llama"])
    figures: dict[str, Any] = {}
    total = Counter[str]()
    for each in _SERVERS:
        name, flags, slots, _ = each
        for share, system in _LOADS:
            found = _run(tiny_model() if name == "tiny" else file, each, share, system)
            figures[f"{flags or 'default'} -np {slots}, {share:.0%} unrelated, system prompt {system}"] = dict(found)
            total += found
    figures["all"] = dict(total)
    if total["wrong"] > sum(total.values()) / 1000:
        error = AssertionError(f"{total['wrong']} causes are wrong")
        error.figures = figures  # type: ignore[attr-defined]
        raise error
    return figures
