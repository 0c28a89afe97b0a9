"""``llamatel top``: on a terminal, in a pipe, as JSON; of a llamatel, and of bare llama.cpp servers."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyte
import pytest

import llamatel
from llamatel.records import RequestGpu
from llamatel.runtime import init
from llamatel.ui.live import _request
from llamatel.ui.request_statistics import RequestStatistics
from llamatel.ui.top.keys import split
from llamatel.ui.top.screen import Choices, plain_lines, screen
from llamatel.ui.top.server_table import ordered
from llamatel.ui.view.glyphs import ASCII
from tests.attached import unmanaged
from tests.load import Clients, completion, endless
from tests.parts import wait_until
from tests.parts.terminal import Terminal
from tests.samples import completion as completion_record
from tests.servers import without_settings
from tests.serving import Serving

SLOTS = 2
CONTEXT = 1024
TOP = [sys.executable, "-m", "llamatel.cli.main", "top"]


@pytest.fixture(scope="module")
def serving(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    patch = pytest.MonkeyPatch()
    without_settings(patch)
    running = Serving(tmp_path_factory.mktemp("top"), tiny_model, "--alias", "tiny", slots=SLOTS, context=CONTEXT)
    with Clients(running.url) as clients:
        clients.send_all([completion(f"Number {n}", 12) for n in range(5)], at_once=1)
    yield running
    running.child.stop()
    patch.undo()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TOP, *arguments], check=False, capture_output=True, text=True, timeout=60)


class Shown:
    """``llamatel top`` on a terminal; ``lines`` is what a person sees."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 30) -> None:
        self.terminal = Terminal([*TOP, *arguments], columns=columns, rows=rows)
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)
        self._fed = 0

    def lines(self) -> list[str]:
        while self.terminal.read(0.05) and len(self.terminal.text) > self._fed:
            self._stream.feed(self.terminal.text[self._fed :])
            self._fed = len(self.terminal.text)
        return list(self._screen.display)

    def resize(self, columns: int, rows: int) -> None:
        self.lines()
        self.terminal.resize(columns, rows)
        self._screen.resize(rows, columns)

    def until(self, found: Callable[[str], object]) -> str:
        try:
            return wait_until(lambda: text if found(text := "\n".join(self.lines())) else "", 30, "the screen")
        except TimeoutError as error:
            raise AssertionError("the screen is\n" + "\n".join(self.lines())) from error


@pytest.fixture
def show() -> Iterator[Callable[..., Shown]]:
    opened: list[Shown] = []

    def start(*arguments: str, **size: int) -> Shown:
        opened.append(Shown(*arguments, **size))
        return opened[-1]

    yield start
    for one in opened:
        if one.terminal.process.poll() is None:
            one.terminal.process.kill()
        one.terminal.process.wait()
        one.terminal.hang_up()


def test_top_80_columns(serving: Serving, show: Callable[..., Shown]) -> None:
    shown = show(serving.page_url)
    requests = [endless(f"Tell {n}", context=CONTEXT, stream=True, hang_up=float("inf")) for n in range(SLOTS)]
    with Clients(serving.url) as clients, clients.keep_sending(requests, at_once=SLOTS):
        text = shown.until(lambda text: len(re.findall(r"\d busy ", text)) == SLOTS and "ok " in text)
        assert "tiny  ready" in text
        assert f"of {SLOTS * CONTEXT:,}" in text
        assert f"{SLOTS} of {SLOTS}" in text
        assert len(re.findall(r"^\d\d:\d\d:\d\d ok ", text, re.MULTILINE)) >= 5, text
    shown.terminal.press("\r")
    shown.until(lambda text: "prefill" in text and "first token after" in text)
    shown.terminal.press("\x1b")
    shown.until(lambda text: "outcome" in text)
    shown.terminal.press("f")
    shown.until(lambda text: "failed" in text)
    shown.terminal.press("q")
    assert shown.terminal.wait() == 0
    # The terminal is restored: the alternate screen is closed, the cursor is visible.
    assert shown.terminal.text.rindex("\x1b[?1049l") > shown.terminal.text.rindex("\x1b[?1049h")
    assert shown.terminal.text.rindex("\x1b[?25h") > shown.terminal.text.rindex("\x1b[?25l")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGHUP, 128 + signal.SIGHUP)]
)
def test_top_restores_terminal_on_signal(
    serving: Serving, show: Callable[..., Shown], number: signal.Signals, status: int
) -> None:
    shown = show(serving.page_url)
    before = shown.terminal.modes()
    shown.until(lambda text: "q quit" in text)
    assert shown.terminal.modes() != before
    if number is signal.SIGINT:
        shown.terminal.press("\x03")
    else:
        shown.terminal.process.send_signal(number)
    assert shown.terminal.wait() == status
    assert shown.terminal.text.rindex("\x1b[?1049l") > shown.terminal.text.rindex("\x1b[?1049h")
    assert shown.terminal.text.rindex("\x1b[?25h") > shown.terminal.text.rindex("\x1b[?25l")
    assert shown.terminal.modes() == before


def test_top_resize(serving: Serving, show: Callable[..., Shown]) -> None:
    shown = show(serving.page_url, "--interval", "60")
    shown.until(lambda text: text.rstrip().endswith("enter waterfall"))
    shown.resize(40, 12)
    shown.until(lambda text: "ready" in text.splitlines()[0] and text.splitlines()[-1].startswith("q quit"))
    shown.resize(120, 40)
    shown.until(lambda text: text.rstrip().endswith("enter waterfall"))
    shown.terminal.press("q")
    assert shown.terminal.wait() == 0


def test_top_keys_while_source_is_slow(serving: Serving, show: Callable[..., Shown]) -> None:
    """Responses after the first are sent when the test allows it."""
    with Held(serving.page_url) as held:
        shown = show(held.url, "--interval", "0.1")
        shown.until(lambda text: "ok " in text)
        wait_until(lambda: held.waiting, 20, "a question that waits")
        shown.terminal.press("h")
        shown.until(lambda text: "order of servers" in text)
        shown.terminal.press("q")
        assert shown.terminal.wait() == 0


class Held:
    """A proxy for a llamatel: forwards its responses to ``top``'s start, and delays later ones."""

    def __init__(self, upstream: str) -> None:
        held = self
        self.waiting = False
        self._go_on = threading.Event()
        answered = iter(range(2))  # is it a llamatel, and the first screen

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if next(answered, None) is None:
                    held.waiting = True
                    held._go_on.wait(60)
                with urllib.request.urlopen(upstream + self.path, timeout=10) as answer:
                    body = answer.read()
                with contextlib.suppress(OSError):  # top has exited
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Held:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_top_polls_servers(serving: Serving, show: Callable[..., Shown]) -> None:
    shown = show(serving.url)
    text = shown.until(lambda text: "ready" in text and "0 idle" in text)
    assert "no request log" in text, text


def test_top_pipe_and_json(serving: Serving) -> None:
    line = run(serving.page_url, "--once")
    assert line.returncode == 0, line.stderr
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  \S+ tiny  ready  busy \d/2  waiting 0  kv \d+/2048 active \d+ cached .*\n", line.stdout
    )
    document = json.loads(run(serving.page_url, "--once", "--json").stdout)
    assert document["servers"][0]["model"] == "tiny"
    assert len(document["requests"]) >= 5
    polled = json.loads(run(serving.url, "--once", "--json").stdout)
    assert polled["servers"][0]["counters"]["tokens_predicted_total"] >= 60
    assert polled["requests"] == []


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (("http://127.0.0.1:9464", "nonsense://x"), 2, "is not a server address"),
        (("--page-token-file", "/no/such/file"), 2, "cannot read"),
        (("--interval", "0", "http://127.0.0.1:1"), 2, "--interval"),
    ],
)
def test_top_usage_error(arguments: tuple[str, ...], status: int, expected: str) -> None:
    wrong = run(*arguments)
    assert (wrong.returncode, wrong.stdout) == (status, "")
    assert expected in wrong.stderr
    assert wrong.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"metrics_addr": "0.0.0.0:0"}, "the page is served on loopback only, unless --page-token-file is given"),
        (
            {"metrics_addr": "127.0.0.1:0", "page_token": "right"},
            "the page needs its token as password (--page-token-file, or LLAMATEL_PAGE_TOKEN)",
        ),
    ],
)
def test_top_page_not_served(options: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    running = init(**options)  # type: ignore[arg-type]
    try:
        assert running.pipeline.metrics_url is not None
        url = running.pipeline.metrics_url.replace("0.0.0.0", "127.0.0.1").removesuffix("/metrics")  # noqa: S104
        monkeypatch.setenv("LLAMATEL_PAGE_TOKEN", "wrong")
        done = run(url, "--once")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"llamatel: error: {url}: {expected}")
        if "page_token" in options:
            monkeypatch.setenv("LLAMATEL_PAGE_TOKEN", options["page_token"])
            assert run(url, "--once").returncode == 0
    finally:
        llamatel.shutdown()


def test_top_server_dies(
    serving: Serving,
    show: Callable[..., Shown],
    llama_server_binary: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    with unmanaged(llama_server_binary, tmp_path, "-m", tiny_model, "--metrics") as other:
        lines = run(serving.url, other.url, "--once").stdout.splitlines()
        assert [line.split()[1] for line in lines] == [url.removeprefix("http://") for url in (serving.url, other.url)]
        shown = show(serving.url, other.url)
        shown.until(lambda text: text.count("ready") >= 3)
        other.child.kill()
        text = shown.until(lambda text: "! " in text)
        # In full, where it does not disturb the picture.
        assert f"! {other.url}/" in text
        assert re.search(r"does not answer: (connection refused|it closed the connection)", text)
        assert "WARNING" not in shown.terminal.text
        shown.until(lambda text: re.search(rf"{other.url.removeprefix('http://')} \S+ +down ", text))


def test_screen_alarm_with_flag() -> None:
    alarm = "127.0.0.1:8090: the KV pool has 194 of 2,048 tokens left for what runs: raise -c, or lower -np"
    lines = screen({**document(), "alarms": [{"at": 0.0, "text": alarm}]}, Choices(), 60, 24).plain.split("\n")
    begin = next(index for index, line in enumerate(lines) if line.startswith("! "))
    assert f"{lines[begin][2:].rstrip()} {lines[begin + 1].strip()}" == alarm


def test_screen_router() -> None:
    shown = document(key="h:1", model=None)
    model = document(key="h:1 m", up=None)
    both = {name: [*shown[name], *model[name]] for name in ("keys", "servers", "overview")}
    shown = {**shown, **both, "focus": "h:1"}
    assert "a router: slots and KV caches belong to its models" in screen(shown, Choices(), 80, 24).plain
    assert "a router" not in screen({**shown, "focus": "h:1 m"}, Choices(), 80, 24).plain


def document(**server: Any) -> dict[str, Any]:
    one = {
        "key": "h:1 m", "address": "h", "port": 1, "model": "m", "up": True, "state": "ready",
        "stale": False, "started_at": None, "deferred": None,
        "decode_rate": None, "counters": {}, "slots": None, "kv_cache": None, **server,
    }  # fmt: skip
    return {
        "taken_at": 0.0, "keys": [one["key"]], "servers": [one], "overview": [row(one)], "focus": one["key"],
        "alarms": [], "requests": [], "devices": [],
        "history": {"decode_rate": [], "busy": []}, "summary": {"requests": {"total": 0}},
    }  # fmt: skip


def row(server: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A server's line of the overview; nothing more is known of it."""
    unknown = dict.fromkeys(
        (
            "trouble",
            "busy",
            "slots",
            "headroom",
            "ttft_p95_s",
            "requests",
            "failed",
            "restarts",
            "deferred",
            "down_since",
        )
    )
    known = {name: server[name] for name in ("key", "up", "state", "stale", "decode_rate", "deferred")}
    return {**unknown, "labels": "", **known, **changes}


@pytest.mark.parametrize("glyphs", [ASCII])
@pytest.mark.parametrize("size", [(80, 24), (40, 10), (200, 60), (20, 3)])
def test_screen_unknown_values(size: tuple[int, int], glyphs: Any) -> None:
    text = screen(document(), Choices(), *size, glyphs=glyphs).plain
    lines = text.split("\n")
    assert len(lines) == size[1]
    assert max(map(len, lines)) <= size[0]
    assert text.isascii()
    if size[0] >= 80:
        assert "KV  not known" in text
        assert "- tok/s" in text
    assert "busy" not in "".join(plain_lines(document()))


def test_screen_gpu_line() -> None:
    gpu = {
        "id": "GPU-1", "name": "Tesla T4", "utilization": 0.97, "memory_used": 12 << 30, "memory_limit": 15 << 30,
        "power_w": 69.6, "power_limit_w": None, "temperature_c": 71.0, "throttled_by": ["sw_power_cap"],
    }  # fmt: skip
    lines = screen({**document(), "devices": [gpu]}, Choices(), 120, 24).plain.split("\n")
    assert [line.rstrip() for line in lines if line.startswith("GPU")] == [
        "GPU  Tesla T4  busy 97 %  12.0 GiB of 15.0 GiB  70 W  71 °C  throttled: sw_power_cap"
    ]
    unknown = dict.fromkeys(gpu) | {"name": "GPU"}
    assert "GPU  GPU  busy –  – of –" in screen({**document(), "devices": [unknown]}, Choices(), 80, 24).plain


def test_screen_escapes_names() -> None:
    hostile = document(key="h:1 \x1b[2J\x07evil") | {"focus": "h:1 \x1b[2J\x07evil"}
    assert "\x1b" not in screen(hostile, Choices(), 80, 24).plain
    assert "\x1b" not in "".join(plain_lines(hostile))


def fleet(count: int) -> dict[str, Any]:
    """Servers of which the last is the busiest, the fullest and the fastest, and the middle one is down."""
    [one] = document()["servers"]
    servers = [
        {**one, "key": f"h:{n} m", "up": n != count // 2, "state": None, "deferred": n, "decode_rate": float(n),
         "kv_cache": {"active": n, "cached": 0, "capacity": count, "used_bytes": {}}}
        for n in range(count)
    ]  # fmt: skip
    rows = [
        row(server, headroom=1 - n / count, trouble="down" if n == count // 2 else None)
        for n, server in enumerate(servers)
    ]
    keys = [server["key"] for server in servers]
    return {**document(), "keys": keys, "servers": servers, "overview": rows, "focus": "h:0 m"}


def test_server_table_labels() -> None:
    shown = fleet(2)
    for one, labels in zip(shown["overview"], ("env=prod pod=\x1b[31ma", "env=test"), strict=True):
        one["labels"] = labels
    text = screen(shown, Choices(), 120, 24).plain
    assert "h:0 m  env=prod pod=" in text
    assert "h:1 m  env=test" in text
    assert text.startswith("llamatel top  h:0 m  env=prod pod=")
    assert "\x1b" not in text
    assert [found["key"] for found in ordered(shown, 1, "env=test")] == ["h:1 m"]


def test_server_table_labels_instead_of_long_models() -> None:
    """Pods of one model at 80 columns; a router's models, which share an address, keep their names."""
    many = fleet(4)
    for number, one in enumerate((*many["servers"], *many["overview"])):
        address = f"10.0.0.{number % 4 if number % 4 < 2 else 9}:8080"
        one["key"] = f"{address} Qwen2.5-Coder-7B-{number % 4}-Instruct"
    for row, labels in zip(many["overview"], ("namespace=a pod=x", "namespace=b pod=x", "pod=r", "pod=r"), strict=True):
        row["labels"] = labels
    many |= {"keys": [one["key"] for one in many["servers"]], "focus": many["servers"][0]["key"]}
    lines = screen(many, Choices(order=1), 80, 24).plain.split("\n")
    names = [line[2:37].rstrip() for line in lines[2:6]]
    assert names[:2] == ["10.0.0.0:8080  namespace=a pod=x", "10.0.0.1:8080  namespace=b pod=x"]
    assert names[2:] == ["10.0.0.9:8080 Qwen2.5-Coder-7B-2-…", "10.0.0.9:8080 Qwen2.5-Coder-7B-3-…"]
    assert not any("……" in line for line in lines)


def test_server_table_order() -> None:
    many = fleet(200)
    choices = Choices()

    def first_shown() -> str:
        lines = screen(many | {"focus": ordered(many, choices.order)[0]["key"]}, choices, 80, 24).plain
        return next(line for line in lines.split("\n")[2:] if " h:" in line).split()[1]

    assert first_shown() == "h:100"
    assert "server (2 of 200), 1 with alarms" in screen(many, choices, 80, 24).plain
    choices.press("o", many)
    assert first_shown() == "h:0"
    for order in ("busiest", "fullest", "fastest"):
        choices.press("o", many)
        assert first_shown() == "h:199"
        assert f"{order} first" in screen(many, choices, 80, 24).plain
    # Faster than documents arrive: each key press counts.
    choices = Choices(order=1)
    for _ in range(3):
        choices.press("tab", many)
    assert choices.focus == "h:3 m"
    assert max(map(len, screen(many, choices, 80, 24).plain.split("\n"))) <= 80


def test_server_table_columns() -> None:
    many = fleet(3)
    many["overview"][0] |= {"ttft_p95_s": 1.5, "requests": 20, "failed": 2, "restarts": 1, "slots": 4, "busy": 3}
    wide = screen(many, Choices(order=1), 120, 24).plain.split("\n")
    assert wide[1].split()[-5:] == ["tok/s", "first", "p95", "failed", "restarts"]
    assert wide[2].split()[3:] == ["up", "3/4", "0", "0", "%", "0", "1.50", "s", "2", "1"]
    assert wide[3].split()[2:] == ["down", "–", "1", "33", "%", "1.00", "–", "–", "–"]
    assert "3/4" in plain_lines(many)[0]
    assert "20 requests  2 failed  first token p95 1.50 s" in plain_lines(many)[0]


def test_screen_title_is_cut() -> None:
    long = document(key="127.0.0.1:8080 " + "long-" * 30, up=False, state=None)
    for width in (40, 60, 80):
        first = screen(long, Choices(), width, 24).plain.split("\n")[0]
        assert "…  down  " in first
        assert len(first) <= width
    assert screen(document(), Choices(), 20, 24, glyphs=ASCII).plain.split("\n")[-1].endswith("~")


def test_server_table_common_host() -> None:
    many = fleet(3)
    for one in (*many["servers"], *many["overview"]):
        one["key"] = one["key"].replace("h:", "127.0.0.1:80").replace(" m", " a-model-with-a-long-name")
    many |= {"keys": [one["key"] for one in many["servers"]], "focus": many["servers"][0]["key"]}
    lines = screen(many, Choices(order=1), 60, 24).plain.split("\n")
    assert [line[2:22] for line in lines[2:5]] == [f":80{n} a-model-with-a…" for n in range(3)]


def test_screen_many_slots() -> None:
    slot = {
        "busy": False, "context_size": 512, "context_tokens": 0, "prompt_computed": None, "prompt_cached": None,
        "decoded": None, "decode_rate": None,
    }  # fmt: skip
    slots = [{**slot, "id": n, "busy": n in (3, 19)} for n in range(20)]
    for width in (80, 60):
        lines = screen(document(slots=slots), Choices(), width, 40).plain.split("\n")
        shown = [line.split()[:2] for line in lines if " idle " in line or " busy " in line]
        shown = [words for words in shown if words[0].isdigit()]
        assert [int(words[0]) for words in shown] == [*range(15), 19]
        assert [words[0] for words in shown if words[1] == "busy"] == ["3", "19"]
        assert any("and 4 more slots" in line for line in lines)
        assert not any(line.endswith("…") for line in lines if line[:4].strip().isdigit())


@pytest.mark.parametrize("width", [40, 60, 80])
def test_screen_help(width: int) -> None:
    words = " ".join(screen(document(), Choices(help=True), width, 40).plain.split())
    for meaning in ("busiest, fullest, fastest", "escape: back", "requests fail", "figures are old"):
        assert meaning in words


def test_screen_without_requests() -> None:
    assert "no request log" in screen(document(), Choices(), 80, 24).plain
    none_yet = document()
    none_yet["overview"][0]["requests"] = 0
    assert "no requests yet" in screen(none_yet, Choices(), 80, 24).plain


def test_screen_bandwidth_of_last_request() -> None:
    requests = [
        {**_request(completion_record(gpu=gpu), None), "server": "h:1 m"}
        for gpu in (RequestGpu(bandwidth_utilization=0.5), RequestGpu(bandwidth_utilization=0.624), None)
    ]
    summary: dict[str, Any] = RequestStatistics(keep=10).summary().as_dict()
    summary["requests"]["total"] = 3
    shown = {**document(), "requests": requests, "summary": summary}
    text = screen({**shown, "overview": [row(shown["servers"][0], requests=3)]}, Choices(), 100, 24).plain
    assert "last at 62 % of the GPU's bandwidth" in text
    # None of them completed: no line of empty percentiles.
    assert "p50" not in text


def test_keys_split() -> None:
    assert list(split("q\x1b[A\x1b[B\x1bOC\r\t\x1b[15~S\x1b")) == [
        "q",
        "up",
        "down",
        "right",
        "enter",
        "tab",
        "s",
        "escape",
    ]


def test_top_search_lists_matching_servers() -> None:
    many = fleet(80)
    choices = Choices(order=1)
    for key in "/7":
        choices.press(key, many)
    assert "search: 7_" in screen(many, choices, 120, 40).plain
    choices.press("enter", many)
    assert choices.focus == "h:7 m"
    shown = screen(many | {"focus": choices.focus}, choices, 120, 40).plain
    assert "server (1 of 17)" in shown
    assert "h:8 m" not in shown
    choices.press("tab", many)
    assert choices.focus == "h:17 m"
    choices.press("escape", many)
    assert "of 80)" in screen(many | {"focus": choices.focus}, choices, 120, 40).plain


def test_top_search_by_state() -> None:
    many = fleet(80)
    for number in (3, 40):
        many["overview"][number] |= {"up": False, "trouble": "down"}
    shown = screen(many, Choices(search="down"), 120, 40).plain
    assert "server (none of 2)" in shown or "of 2)" in shown
    assert "h:40 m" in shown
    assert [row["key"] for row in ordered(many, 1, "DOWN h:40")] == ["h:40 m"]


def test_top_search_without_match() -> None:
    many = fleet(3)
    choices = Choices(search="zzz")
    assert "server (none of 3)" in screen(many, choices, 120, 40).plain
    choices.press("tab", many)
    assert choices.focus is None


def test_top_server_table_fills_the_terminal() -> None:
    lines = screen(fleet(80), Choices(order=1), 120, 40).plain.split("\n")
    assert sum(line[2:4] == "h:" for line in lines) >= 25
    assert len([line for line in lines[:-1] if not line.strip()]) <= 2


def test_top_home_and_end_select_first_and_last_server() -> None:
    many, choices = fleet(80), Choices(order=1)
    choices.press("end", many)
    assert choices.focus == "h:79 m"
    choices.press("home", many)
    assert choices.focus == "h:0 m"


def test_top_shows_since_when_a_server_is_down() -> None:
    many = fleet(3)
    many["overview"][1]["down_since"] = many["taken_at"] - 90
    assert "down      for 90.0 s" in screen(many, Choices(), 120, 40).plain
