"""Properties of the readers of logs that other programs write: wrapped lines, Ollama's log, llama-swap's stream."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

from llamatel.llama.log.log_source import Backlog, Batch
from llamatel.llama.log.ollama_log import AccessLine, ChildReady, ChildStart
from llamatel.llama.log.ollama_log import parse_ollama as parse
from llamatel.llama.log.ollama_separation import OllamaSeparation
from llamatel.llama.watch.ollama_log_reader import OllamaLogReader
from llamatel.llama.watch.server_log import ServerLog
from llamatel.records import Completion, ServerInfo
from tests.fuzz.server_log import ANY_LAUNCH, LOGS, NOW, Launches, check_requests, key_value_corpus, lines_of
from tests.fuzz.target import Broken, Target
from tests.golden.reading import read_streams

_CRI_HEAD = re.compile(r"\n\S{1,40} std(?:out|err) [PF] ")
_BYTES = re.compile(r"\[([\d, ]{60,})\]")
_REQUEST = (
    "0.07.000.000 I slot launch_slot_: id  1 | task 5 | processing task, is_child = 0",
    "0.07.020.000 I slot print_timing: id  1 | task 5 | prompt eval time =       0.59 ms /    13 tokens (    0.05 ms)",
    "0.07.020.001 I slot print_timing: id  1 | task 5 |        eval time =       2.15 ms /    20 tokens (    0.11 ms)",
    "0.07.020.002 I slot      release: id  1 | task 5 | stop processing: n_tokens = 32, truncated = 0",
)


def _launches(data: bytes) -> Launches:
    """Launches anywhere in the text: as it is, unescaped, joined, from arrays of bytes."""
    text = data.decode("utf-8", "replace").replace("\0", "")
    texts = {text, _CRI_HEAD.sub("", text), text.replace("\n", "")}
    texts |= {re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), each) for each in list(texts)}
    arrays = (re.findall(r"\d{1,3}", found[1]) for found in _BYTES.finditer(text))
    texts |= {bytes(min(255, int(byte)) for byte in array).decode("utf-8", "replace") for array in arrays}
    found: Launches = Counter()
    for each in texts:
        found |= Counter((int(slot), int(task)) for slot, task in ANY_LAUNCH.findall(each))
    return found


def _check(completed: list[Completion], data: bytes) -> None:
    if b"slot is processing task" not in data:  # that format is the target log_key_value's
        check_requests(completed, _launches(data))


def check_wrapped(data: bytes) -> bool:
    """Read ``data`` as an attached log, live and as a backlog; True if a request was in it."""
    lines = lines_of(data)
    for batch in (Batch(lines, NOW), Backlog(lines, NOW)):
        completed = read_streams([batch])
        _check(completed, data)
    return bool(completed)


class _Children:
    """The servers that an Ollama's log announces: each keeps its own log."""

    def __init__(self) -> None:
        self.logs: dict[int, ServerLog] = {}

    def starts(self, start: ChildStart, now: float) -> int:
        number = len(self.logs) + 1
        if not 0 < start.port < 65536 or len(start.model_path) > 4096:
            raise Broken(f"a child that cannot be: {start}")
        if number < 64:
            self.logs[number] = ServerLog(ServerInfo("fuzz", start.port))
        return number

    def ready(self, loading_s: float | None) -> None:
        pass

    def failed(self) -> None:
        pass

    def evicting(self) -> None:
        pass

    def only_newest(self) -> None:
        pass

    def configured(self, most_loaded: int) -> None:
        """See ``ollama_log_reader.Children``."""

    def restarted(self) -> None:
        pass

    def log(self, server: int) -> ServerLog | None:
        return self.logs.setdefault(server, ServerLog(ServerInfo("fuzz", 1)))


def check_ollama(data: bytes) -> bool:
    """Read ``data`` as Ollama's log; True if a request or an event of Ollama's own was in it."""
    lines, completed = lines_of(data), list[Completion]()
    events = [event for line in lines if (event := parse(line)) is not None]
    for event in events:
        if isinstance(event, (AccessLine, ChildReady)):
            seconds = event.duration_s if isinstance(event, AccessLine) else event.loading_s
            if not 0 <= seconds < 1e14:
                raise Broken(f"a duration that cannot be: {event}")
    for batch in (Batch(lines, NOW), Batch((), NOW), Backlog(lines, NOW)):
        reader = OllamaLogReader(_Children(), OllamaSeparation())
        if isinstance(batch, Batch):
            reader.read(batch)
        else:
            reader.read_backlog(batch)
        completed = [ended.completion for ended in reader.ended]
        _check(completed, data)
    return bool(events or completed)


def check_swap_stream(data: bytes) -> bool:
    """Read ``data`` as llama-swap's log stream; True if a request was in it."""
    log, lines = ServerLog(ServerInfo("fuzz", 1)), lines_of(data)
    completed = log.feed(lines, NOW)
    _check(completed, data)
    log.forget()
    return bool(completed)


def _wrapped() -> list[bytes]:
    """One request in each wrapper."""
    from tests.test_log_wrappers import WRAPPERS

    made = ["\n".join(wrap(line, NOW + number) for number, line in enumerate(_REQUEST)) for wrap in WRAPPERS.values()]
    return [each.encode("utf-8", "replace") for each in made]


def _ollama() -> list[bytes]:
    """Ollama's own lines, with the requests of their children; in a wrapper, too."""
    from tests.test_ollama import LINES

    plain = [line.partition(" I ")[2] for line in _REQUEST]
    lines = list(LINES)
    own = [*lines[:1], *lines[5:6], *plain, *lines[2:5], *lines[6:]]
    docker = (json.dumps({"log": f"{line}\n", "stream": "stderr", "time": "2026-09-21T14:13:20.5Z"}) for line in own)
    return ["\n".join(own).encode(), "\n".join(lines).encode(), "\n".join(docker).encode()]


def _stream() -> Sequence[bytes]:
    return [(LOGS / f"{name}.log").read_bytes()[:8000] for name in ("unstamped", "2026.10.11549")]


TARGETS = (
    Target("wrapped_lines", check_wrapped, lambda: [*_wrapped(), *key_value_corpus()]),
    Target("ollama_log", check_ollama, _ollama),
    Target("llama_swap_stream", check_swap_stream, _stream),
)
