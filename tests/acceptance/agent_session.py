"""An agent session on a trained model: lost prompts, causes and seconds as the clients count."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import urllib3

from llamatel.llama import ServerManager
from llamatel.records import Completion, RecomputeCause
from tests.parts import llama_server, smollm2, wait_until

ORDER = "AABBBACCDDABCDDACBAD"
"""Whose turn it is: four agents with a common system prompt on two slots, 20 turns."""
EDITED = 14
"""The turn in which the client changes what the agent had read last."""
SYSTEM = "You are an agent that reads files and answers in one sentence. " + " ".join(
    f"Rule {number}: name the file, then its purpose, and never more than asked." for number in range(1, 5)
)


class Agent:
    """One conversation, with what the server's cache got of it."""

    def __init__(self, name: str) -> None:
        self.messages = [{"role": "system", "content": SYSTEM}]
        self.cached: list[int] = []
        self._name = name
        self._turns = 0

    def ask(self) -> None:
        """The next message, of a length of its own."""
        self._turns += 1
        length = 4 + (ord(self._name) - ord("A"))
        text = " ".join(
            f"{self._name.lower()}{self._turns}_{line}.py opens port {line * 13}." for line in range(length)
        )
        self.messages.append({"role": "user", "content": f"Agent {self._name}, file {self._turns}: {text}"})


def _session(model: Path, *flags: str) -> dict[str, Any]:
    """20 turns; each as the client counts it and as the log was read."""
    records: list[Completion] = []
    agents, http = {name: Agent(name) for name in "ABCD"}, urllib3.PoolManager(retries=False)
    rows = []
    with ServerManager(backend=str(llama_server())) as server:
        server.subscribe(records.append)
        server.start_server(
            model, port=0, n_parallel=2, ctx_size=16384, extra_args=["-t", "1", "--no-kv-unified", *flags]
        )
        server.wait_until_ready(120)
        wait_until(lambda: (state := server.snapshot()) is not None and state.model is not None, 60, "the model")

        def post(path: str, body: dict[str, Any]) -> Any:
            answer = http.request("POST", f"{server.base_url}{path}", json=body, timeout=300)
            assert answer.status == 200, answer.data
            return answer.json()

        for turn, name in enumerate(ORDER):
            agent, cause = agents[name], None
            agent.ask()
            if turn == EDITED:
                agent.messages[-3]["content"] = "Again: " + agent.messages[-3]["content"]
            text = post("/apply-template", {"messages": agent.messages})["prompt"]
            prompt = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
            body = {"messages": agent.messages, "max_tokens": 12, "temperature": 0, "return_tokens": True}
            answer = post("/v1/chat/completions", body)
            timings = answer["timings"]
            reused, computed = timings["cache_n"], timings["prompt_n"]
            assert reused + computed == len(prompt)
            lost = max(0, min(len(agent.cached), len(prompt) - 1) - reused)
            shared = _common(agent.cached, prompt)
            if lost > _SLACK and shared > reused + _SLACK:
                cause = RecomputeCause.SLOT_TAKEN  # it was in a slot, which others have taken since
            elif lost > _SLACK:
                cause = RecomputeCause.PREFIX_CHANGED
            if cause is None:
                lost = 0
            wait_until(lambda: len(records) > turn, 60, "the request's record")  # noqa: B023 - called at once
            record = records[turn]
            seconds = timings["prompt_ms"] / 1e3 * lost / computed
            rows.append((name, cause, lost, seconds, record))
            content = answer["choices"][0]["message"]["content"]
            agent.messages.append({"role": "assistant", "content": content})
            after = post("/tokenize", {"content": content, "add_special": False, "parse_special": True})["tokens"]
            agent.cached = prompt + after
    wrong = [
        f"turn {number} of {name}: {cause} {lost} tokens {seconds:.3f} s, read {record.recompute_cause} "
        f"{record.prompt_recomputed} {record.recompute_s}"
        for number, (name, cause, lost, seconds, record) in enumerate(rows, 1)
        if record.recompute_cause is not cause
    ]
    counted, read = (sum(row[2] for row in rows), sum(row[4].prompt_recomputed or 0 for row in rows))
    if abs(read - counted) > _TOLERANCE * counted:
        wrong.append(f"{counted} tokens were lost, read {read}")
    print(f"session {' '.join(flags)}: {len(rows)} turns, wrong: {wrong or 'none'}", flush=True)
    return {
        "turns": len(rows),
        "causes": dict(Counter(cause.value if cause else "none" for _, cause, *_ in rows)),
        "lost_tokens_counted": counted,
        "lost_tokens_read": read,
        "turns_with_another_prompts_tokens": sum(
            abs((record.prompt_recomputed or 0) - lost) > _SLACK for _, _, lost, _, record in rows
        ),
        "lost_seconds_counted": round(sum(row[3] for row in rows), 3),
        "lost_seconds_read": round(sum(row[4].recompute_s or 0.0 for row in rows), 3),
        "wrong": wrong,
    }


_SLACK = 4
"""Tokens: the end of an answer may become other tokens in the next prompt."""
_TOLERANCE = 0.02
"""Of the tokens of a session. Of two lost prompts of nearly the same length, a turn may get the other one's figure."""


def _common(first: list[int], second: list[int]) -> int:
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def run(folder: Path) -> dict[str, Any]:
    """The session without and with host memory for prompts."""
    model = smollm2()
    figures = {"--cache-ram 0": _session(model, "--cache-ram", "0"), "default": _session(model)}
    wrong = [line for each in figures.values() for line in each["wrong"]]
    if wrong:
        error = AssertionError("; ".join(wrong))
        error.figures = figures  # type: ignore[attr-defined]
        raise error
    return figures
