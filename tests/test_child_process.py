"""Child processes with always drained output, and lines from chunks of bytes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatel.llama.log.line_buffer import LineBuffer
from llamatel.llama.server.child_process import Child
from tests.parts import wait_until
from tests.servers import descriptors, has_exited

PYTHON = [sys.executable, "-I", "-S", "-c"]


# -- lines -------------------------------------------------------------------------------------------------------------


def lines_of(*chunks: bytes) -> list[str]:
    buffer = LineBuffer()
    return [line for chunk in chunks for line in buffer.feed(chunk)] + buffer.flush()


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([], []),
        ([b""], []),
        ([b"a\nb\n"], ["a", "b"]),
        ([b"a\nb"], ["a", "b"]),
        ([b"a", b"b", b"\n", b"c"], ["ab", "c"]),
        ([b"\n\n"], ["", ""]),
        ([b"a\r\nb\r"], ["a", "b"]),
        ([b"a\r", b"\nb\n"], ["a", "b"]),
        ([b"\xff\xfe\n", b"\xe2\x82", b"\xac\n"], ["\ufffd\ufffd", "\u20ac"]),
        ([b"nul\0nul\n"], ["nul\0nul"]),
    ],
)
def test_line_buffer_lines(chunks: list[bytes], lines: list[str]) -> None:
    assert lines_of(*chunks) == lines


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b""))), st.data())
def test_line_buffer_any_chunking(lines: list[bytes], data: st.DataObject) -> None:
    text = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert lines_of(*chunks) == lines_of(text)
    assert lines_of(text) == [line.rstrip(b"\r").decode("utf-8", "replace") for line in lines]


@pytest.mark.parametrize("chunk", [1000, 65536, 65537, 1 << 20])
def test_line_buffer_endless_line_is_cut(chunk: int) -> None:
    text = b"x" * (1 << 20) + b"\nnext\n" + b"y" * 300_000
    buffer = LineBuffer()
    lines = []
    for start in range(0, len(text), chunk):
        lines += buffer.feed(text[start : start + chunk])
        assert len(buffer._rest) <= 65536
    lines += buffer.flush()
    assert [(line[0], len(line)) for line in lines] == [("x", 65536), ("n", 4), ("y", 65536)]


# -- a child -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def wake() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def read_all(child: Child, timeout: float = 60) -> list[str]:
    lines: list[str] = []
    end = time.monotonic() + timeout
    while not child.finished:
        assert time.monotonic() < end
        lines += child.read(None).lines
    return lines


def test_child_all_output_is_read(wake: tuple[int, int]) -> None:
    code = "import sys\nfor n in range(50000): print(n)\nsys.stdout.flush(); sys.stderr.write('last'); sys.exit(3)"
    child = Child([*PYTHON, code], {}, wake=wake[0])
    assert read_all(child) == [*map(str, range(50000)), "last"]
    assert (child.close(), child.returncode) == (3, 3)


def test_child_environment(wake: tuple[int, int]) -> None:
    code = (
        "import os; print(os.environ['LLAMATEL_TEST'], 'PATH' in os.environ, os.isatty(0), os.getsid(0) == os.getpid())"
    )
    child = Child([*PYTHON, code], {"LLAMATEL_TEST": "here"}, wake=wake[0])
    assert read_all(child) == ["here True False True"]
    assert child.close() == 0


def test_child_endless_output_does_not_block_reader(wake: tuple[int, int]) -> None:
    child = Child(["yes", "a line " * 100], {}, wake=wake[0])
    read = [len(child.read(1).lines) for _ in range(10)]
    assert 0 < max(read) < 10_000
    child.kill()
    read_all(child)
    assert child.close() == -signal.SIGKILL


def test_child_wake_up_ends_read(wake: tuple[int, int]) -> None:
    child = Child([*PYTHON, "import time; time.sleep(60)"], {}, wake=wake[0])
    os.write(wake[1], b"!")
    start_time = time.monotonic()
    assert child.read(50).lines == []
    assert child.read(50).lines == []
    assert child.read(0.01, wakeful=False).lines == []
    assert time.monotonic() - start_time < 40
    child.terminate()
    read_all(child)
    assert child.close() == -signal.SIGTERM


def test_child_exit_ends_read(wake: tuple[int, int]) -> None:
    child = Child([*PYTHON, "import os; os.close(1); os.close(2); import time; time.sleep(0.3)"], {}, wake=wake[0])
    assert read_all(child, 40) == []
    assert child.close() == 0


@pytest.mark.parametrize("how", ["none", "refused"])
def test_child_without_process_descriptors(how: str, wake: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> int:
        raise PermissionError

    if how == "none":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    else:
        monkeypatch.setattr(os, "pidfd_open", refused, raising=False)
    child = Child([*PYTHON, "print('hello')"], {}, wake=wake[0])
    assert read_all(child, 40) == ["hello"]
    assert child.close() == 0


def test_child_pipe_held_by_another_process(wake: tuple[int, int]) -> None:
    child = Child(["sh", "-c", "sleep 60 & echo $!"], {}, wake=wake[0])
    start_time = time.monotonic()
    [line] = read_all(child)
    assert time.monotonic() - start_time < 30  # half a second by design
    assert child.close() == 0
    os.kill(int(line), signal.SIGKILL)


def test_child_kill_includes_its_children(wake: tuple[int, int]) -> None:
    child = Child(["sh", "-c", "sleep 60 & echo $!; wait"], {}, wake=wake[0])
    [line] = wait_until(lambda: child.read(0.1).lines)
    child.kill()
    read_all(child)
    assert child.close() == -signal.SIGKILL
    wait_until(lambda: has_exited(int(line)))
    child.kill()  # no effect after exit


def test_child_failed_start_leaves_nothing_open(wake: tuple[int, int]) -> None:
    before = descriptors()
    for command, environment in ((["a\0b"], {}), (["true"], {"a": "b\0c"}), (["true", "x" * (1 << 22)], {})):
        with pytest.raises((OSError, ValueError)):
            Child(command, environment, wake=wake[0])
    assert descriptors() == before
