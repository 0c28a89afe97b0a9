"""A request of llama-cpp-python's server as one line of its log, and back.

The server runs in a process of its own; its log reaches the server manager anyway, in order and to the last line.
"""

from __future__ import annotations

import dataclasses
import json

from llamatel.records import Call, Completion, Outcome, Phase, ServerInfo

LLAMA_CPP_PYTHON = "llama-cpp-python"
"""The backend whose log has such lines."""
MARK = "llamatel: {"
"""How such a line begins."""
_ELSEWHERE = ("server", "call")


def call_line(completion: Completion) -> str:
    """The line, without its end. It holds no prompt and no answer."""
    own = {name: value for name, value in dataclasses.asdict(completion).items() if name not in _ELSEWHERE}
    call = None if completion.call is None else dataclasses.asdict(completion.call)
    return MARK[:-1] + json.dumps({**own, "outcome": completion.outcome.value, "call": call})


def read_call_line(line: str, server: ServerInfo) -> Completion | None:
    """The request that a line tells, as one of ``server``; None for a line that is cut or from another release."""
    try:
        fields = json.loads(line[len(MARK) - 1 :])
        call = fields.pop("call")
        call["phases"] = tuple(Phase(**phase) for phase in call["phases"])
        call["attributes"] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in call["attributes"].items()
        }
        call["in_process"] = False
        fields["outcome"] = Outcome(fields["outcome"])
        return Completion(server=server, call=Call(**call), **fields)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
