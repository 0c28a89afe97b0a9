"""Scripted requests whose prompt reuse the client knows, listed by cause, and their independent count.

The client sends token numbers, so that it knows what each slot holds: a conversation's prompt and answer without the
last token. Lost tokens are what the conversation had in the cache and the server did not reuse; seconds are those of
the response's ``timings``, in proportion.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import urllib3

from llamatel.llama import ServerManager
from llamatel.records import Completion, RecomputeCause
from tests.parts import wait_until

C = RecomputeCause
TAKEN, CHANGED, MISS, CLEARED = C.SLOT_TAKEN, C.PREFIX_CHANGED, C.PROMPT_CACHE_MISS, C.CACHE_CLEARED
_VOCABULARY = range(10, 60)
"""Tokens that every model of the suite has, none of them special."""
_ANSWER = 50
"""The token of all answers: builds of summer 2026 refuse text that is not UTF-8."""


@dataclass(frozen=True)
class Turn:
    """One request: a conversation and what the client does to it."""

    conversation: str
    cause: RecomputeCause | None = None
    """The cause that must be found; None: nothing is lost."""
    add: int = 40
    """Tokens that the client adds."""
    change_at: int | None = None
    """Replaces the token at this position, and all that follow except as many new ones."""
    generate: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    before: str = ""
    """What happens first: ``sleep``, ``erase``."""
    forget_answer: bool = False
    """The client does not send the previous answer back."""


@dataclass(frozen=True)
class Case:
    """A server and the requests that it gets, one after the other."""

    name: str
    model: str
    flags: str
    turns: tuple[Turn, ...]
    slots: int = 1
    context: int = 4096
    thorough: bool = False
    """Only in the acceptance; a case like it is in ``make test``."""


def _rounds(names: str, *causes: RecomputeCause | None, first: int = 200) -> tuple[Turn, ...]:
    """A request of each conversation, once for each cause."""
    return tuple(
        Turn(name, cause, add=40 if number else first) for number, cause in enumerate(causes) for name in names
    )


OFF: dict[str, Any] = {"cache_prompt": False}
WINDOW, RECURRENT = "gemma3:pattern", "mamba"
CASES = (
    # Nothing is lost.
    Case("continued", "tiny", "", _rounds("a", None, None, None)),
    Case("drafting", "glm4moe", "--spec-type draft-mtp", _rounds("a", None, None, None)),
    Case("continued with a recurrent state", RECURRENT, "", _rounds("a", None, None, None), thorough=True),
    Case("unrelated prompts", "tiny", "--cache-ram 0", _rounds("abcdef", None), slots=2),
    Case("host memory hit", "tiny", "", _rounds("ab", None, None, None), thorough=True),
    Case("host memory hit, two slots", "tiny", "", _rounds("abcd", None, None, None), slots=2),
    Case("answer not sent back", "tiny", "", (Turn("a", add=200), Turn("a", forget_answer=True))),
    # slot_taken
    Case("four conversations on two slots", "tiny", "--cache-ram 0", _rounds("abcd", None, TAKEN, TAKEN), slots=2),
    Case("two conversations on one slot", "tiny", "--cache-ram 0", _rounds("ab", None, TAKEN, TAKEN), thorough=True),
    Case("slots taken, sliding window", WINDOW, "--cache-ram 0", _rounds("ab", None, TAKEN), thorough=True),
    Case("slots taken, recurrent state", RECURRENT, "--cache-ram 0", _rounds("ab", None, TAKEN)),
    # prefix_changed
    Case("changed in the middle", "tiny", "", (Turn("a", add=200), Turn("a", CHANGED, change_at=150))),
    *(  # Nothing tells the first change from another conversation that starts the same.
        Case(
            f"changed at token {position} again and again", "tiny", "",
            (Turn("a", add=400), Turn("a", change_at=position), *[Turn("a", CHANGED, change_at=position)] * 3),
        )
        for position in (12, 100)
    ),
    # no_checkpoint, checkpoint_evicted
    *(
        Case(
            f"changed, {name}", name, "--ctx-checkpoints 0",
            (Turn("a", add=300), Turn("a", C.NO_CHECKPOINT, change_at=150)),
        )
        for name in (WINDOW, RECURRENT)
    ),
    Case("continued from a checkpoint", WINDOW, "", _rounds("a", None, C.NO_CHECKPOINT, C.NO_CHECKPOINT)),
    Case("continued without one", WINDOW, "--ctx-checkpoints 0", _rounds("a", None, C.NO_CHECKPOINT), thorough=True),
    Case(
        "the checkpoint was evicted", RECURRENT, "--ctx-checkpoints 1",
        (Turn("a", add=300), Turn("a", add=100), Turn("a", C.CHECKPOINT_EVICTED, change_at=320)),
    ),
    Case(
        "the evicted checkpoint was no earlier", RECURRENT, "--ctx-checkpoints 1",
        (Turn("a", add=300), Turn("a", add=100), Turn("a", C.NO_CHECKPOINT, change_at=150)), thorough=True,
    ),
    # cache_prompt_off
    *(
        Case(f"reuse switched off, {name}", name, "", (Turn("a", add=200), Turn("a", C.CACHE_PROMPT_OFF, options=OFF)))
        for name in ("tiny", WINDOW, RECURRENT)
    ),
    # context_shift
    Case(
        "context shifted", "tiny", "--context-shift",
        (Turn("a", add=200, generate=400), Turn("a", C.CONTEXT_SHIFT, forget_answer=True)), context=512,
    ),
    # cache_cleared
    Case("sleep", "tiny", "--sleep-idle-seconds 1", (Turn("a", add=200), Turn("a", CLEARED, before="sleep"))),
    Case(
        "slot purged", "tiny", "--kv-unified --cache-ram 0",
        (Turn("a", add=200), Turn("b", add=400), Turn("a", CLEARED)), slots=2, context=512,
    ),
    Case(
        "slot erased", "tiny", "--slot-save-path {folder}", (Turn("a", add=200), Turn("a", CLEARED, before="erase"))
    ),
    # prompt_cache_miss
    Case("host memory full", "llama", "--cache-ram 1", _rounds("abc", None, MISS, first=700)),
)  # fmt: skip


class Counted(NamedTuple):
    """A request as the client counted it, and as the log was read."""

    turn: Turn
    lost: int | None
    """None: the client cannot know it."""
    seconds: float | None
    record: Completion

    def __str__(self) -> str:
        """For a failure's message."""
        found = self.record
        counted = f"{self.turn.conversation}: {self.turn.cause}, {self.lost} tokens, {self.seconds} s"
        read = f"{found.recompute_cause}, {found.prompt_recomputed} tokens, {found.recompute_s} s"
        return f"{counted}; read {read}, {found.prompt_cached} of {found.prompt_tokens} cached"

    @property
    def cause(self) -> RecomputeCause | None:
        """The cause that must be found, as builds differ: none where the server lost nothing."""
        if self.turn.cause is C.CHECKPOINT_EVICTED and self.record.prompt_cached:
            return C.NO_CHECKPOINT  # it was not evicted: tokens after it are computed again
        return self.turn.cause if self.lost else None

    @property
    def agrees(self) -> bool:
        """Cause, tokens and seconds are those of the client, to the rounding of f_sim_best."""
        cause, lost, found = self.cause, self.lost or 0, self.record
        if cause is None:
            return found.recompute_cause is None and not found.prompt_recomputed
        if found.recompute_cause is not cause or found.prompt_recomputed is None or found.recompute_s is None:
            return False
        prompt = found.prompt_tokens or 0
        close = abs(found.prompt_recomputed - lost) <= 1 + prompt // 1000
        return close and abs(found.recompute_s - (self.seconds or 0.0)) <= 0.02 * (self.seconds or 0.0) + 0.002


class Client:
    """Sends turns to one server and remembers each conversation's tokens."""

    def __init__(self, url: str, names: set[str]) -> None:
        self._url = url
        self._http = urllib3.PoolManager(retries=False)
        self._numbers = {name: random.Random(name) for name in names}
        self._tokens: dict[str, list[int]] = {name: [] for name in names}
        self._cached: dict[str, list[int]] = {name: [] for name in names}
        """What the server's cache got of each."""
        self._answers: dict[str, int] = {}

    def send(self, turn: Turn) -> tuple[int, float]:
        """Lost tokens and seconds."""
        name, numbers = turn.conversation, self._numbers[turn.conversation]
        tokens = self._tokens[name]
        if turn.forget_answer and self._answers.get(name):
            del tokens[-self._answers[name] :]
        tokens += [numbers.choice(_VOCABULARY) for _ in range(turn.add)]
        if turn.change_at is not None:
            tokens[turn.change_at] = 9 + (tokens[turn.change_at] - 8) % 51
        body = {
            "prompt": tokens, "n_predict": turn.generate, "ignore_eos": True, "return_tokens": True,
            "logit_bias": [[_ANSWER, 1000.0]], **turn.options,
        }  # fmt: skip
        answer = self._post("/completion", body)
        timings = answer["timings"]
        before = self._cached[name]
        reused, computed = len(tokens) - timings["prompt_n"], timings["prompt_n"]
        known = min(len(before), len(tokens) - 1)
        lost = 0 if turn.cause is None else known - reused
        if turn.cause in (C.NO_CHECKPOINT, C.CHECKPOINT_EVICTED, C.CACHE_PROMPT_OFF):
            lost = _common(before, tokens) - reused
        self._answers[name] = len(answer["tokens"])
        tokens += answer["tokens"]
        self._cached[name] = tokens[:-1]
        return lost, timings["prompt_ms"] / 1e3 * lost / computed

    def erase(self, slot: int) -> None:
        """Empty a slot."""
        self._post(f"/slots/{slot}?action=erase", {})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.request("POST", self._url + path, json=body, timeout=120)
        assert answer.status == 200, answer.data
        return answer.json()


def _common(first: list[int], second: list[int]) -> int:
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def run_case(case: Case, backend: str, model: Path, folder: Path) -> list[Counted]:
    """Run a case; ``model`` is its file."""
    records: list[Completion] = []
    found: list[Counted] = []
    with ServerManager(backend=backend) as server:
        server.subscribe(records.append)
        flags = case.flags.format(folder=folder).split()
        server.start_server(model, port=0, n_parallel=case.slots, ctx_size=case.context, extra_args=["-t", "1", *flags])
        server.wait_until_ready(60)
        # Until the model's file was read, it is not known what its cache can do.
        wait_until(lambda: (state := server.snapshot()) is not None and state.model is not None, 60, "the model")
        assert server.base_url
        client = Client(server.base_url, {turn.conversation for turn in case.turns})
        for number, turn in enumerate(case.turns, 1):
            _prepare(turn.before, server, client)
            lost, seconds = client.send(turn)
            wait_until(lambda: len(records) >= number, 60, "the request's record")  # noqa: B023 - called at once
            found.append(Counted(turn, lost, seconds, records[number - 1]))
    return found


def _prepare(action: str, server: ServerManager, client: Client) -> None:
    if action == "sleep":
        wait_until(lambda: bool((state := server.snapshot()) and state.state == "sleeping"), 60, "the server to sleep")
    if action == "erase":
        client.erase(0)
        wait_until(lambda: _empty(server), 60, "a poll after the slot was erased")


def _empty(server: ServerManager) -> bool:
    state = server.snapshot()
    return state is not None and state.slots is not None and not state.slots[0].context_tokens
