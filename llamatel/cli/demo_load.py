"""The demo's requests: a small mixed load."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from llamatel.cli.load_clients import LoadRequest

# In the language of the model that llamatel ships (llamatel/models/tiny.md).
_SYSTEM = "you answer in short sentences ."
_QUESTIONS = (
    "count from one to twenty .",
    "the cup is red . the ball is blue . what color is the cup ?",
    "say again : fox lamp two red bear hill green anna seven boat drum .",
    "the hat is green . the key is black . the lamp is white . what color is the key ?",
    "count from three to nineteen .",
)
_STORIES = (
    "one day anna went to the forest .",
    "in the garden there was a red fox .",
    "ben gave the book to the bear .",
)


def _chat(question: str, tokens: int, *, stream: bool) -> LoadRequest:
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]
    return LoadRequest("/v1/chat/completions", {"messages": messages, "max_tokens": tokens, "stream": stream})


def _completion(prompt: str, tokens: int, *, stream: bool) -> LoadRequest:
    return LoadRequest("/v1/completions", {"prompt": prompt, "max_tokens": tokens, "stream": stream})


def mixed_load(context: int) -> list[LoadRequest]:
    """Chat and completion, streaming and not, long and short; one that disconnects and one that is too long.

    ``context``: what one slot holds, in tokens.
    """
    requests: list[LoadRequest] = []
    for index, question in enumerate(_QUESTIONS * 2):
        requests.append(_chat(question, 32 + 48 * (index % 4), stream=index % 2 == 0))
    for index, story in enumerate(_STORIES * 2):
        requests.append(
            _completion(" ".join([story] * (1 + 6 * (index % 3))), 32 + 48 * (index % 3), stream=index % 2 == 1)
        )
    hang_up = _completion("one day hugo went to the river .", context, stream=True)
    requests.insert(3, LoadRequest(hang_up.path, hang_up.body, hang_up=3))
    requests.insert(8, _completion("again " * (context + 16), 8, stream=False))
    return requests


def steady_load() -> Iterator[LoadRequest]:
    """An endless series of small requests."""
    for index in itertools.count():
        yield _chat(_QUESTIONS[index % len(_QUESTIONS)], 24 + 24 * (index % 4), stream=index % 2 == 0)
