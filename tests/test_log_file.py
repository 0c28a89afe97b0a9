"""Log files and streams as sources: every line once, over rotation, truncation, restarts and encodings."""

from __future__ import annotations

import gzip
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamatel.errors import LogSourceError, UsageError
from llamatel.llama.log.log_file import FileSource, open_log
from llamatel.llama.log.log_source import Backlog, LogSource, StreamSource
from llamatel.llama.log.read_position import Fingerprint, Position, PositionFile
from tests.parts import wait_until


class Followed:
    """Reads a source on a thread and keeps its output."""

    def __init__(self, source: LogSource) -> None:
        self.source = source
        self.lines: list[str] = []
        self.repeated: list[str] = []
        self.error: LogSourceError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for batch in self.source.batches():
                if isinstance(batch, Backlog):
                    scanned = [line for lines in batch.scan() for line in lines]
                    given: list[str] = []
                    for lines, recorded in batch.batches():
                        given += lines
                        (self.repeated if recorded else self.lines).extend(lines)
                    assert given == scanned
                else:
                    self.lines += batch.lines
        except LogSourceError as error:
            self.error = error

    def wait_for(self, number: int) -> None:
        wait_until(lambda: len(self.lines) >= number, 20, f"{number} lines")

    def end(self) -> list[str]:
        """What it gave until its end."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.lines

    def stop(self) -> list[str]:
        self.source.stop()
        return self.end()


@pytest.fixture
def follow() -> Iterator[Callable[[LogSource], Followed]]:
    followed: list[Followed] = []

    def start(source: LogSource) -> Followed:
        followed.append(Followed(source))
        return followed[-1]

    yield start
    for each in followed:
        each.stop()


Follow = Callable[[LogSource], Followed]


def numbered(start: int, end: int) -> list[str]:
    return [f"line {number} {'x' * (number % 50)}" for number in range(start, end)]


def write(path: Path, lines: list[str], mode: str = "a") -> None:
    with path.open(mode) as stream:
        stream.write("".join(f"{line}\n" for line in lines))


def test_file_from_start_then_new_lines(tmp_path: Path, follow: Follow) -> None:
    log = tmp_path / "server.log"
    write(log, numbered(0, 50_000))
    reading = follow(FileSource(log, from_start=True))
    reading.wait_for(50_000)
    write(log, numbered(50_000, 50_100))
    reading.wait_for(50_100)
    assert reading.stop() == numbered(0, 50_100)


def test_file_line_in_two_writes(tmp_path: Path, follow: Follow) -> None:
    log = tmp_path / "server.log"
    log.write_text("first\nsec")
    reading = follow(FileSource(log, from_start=True))
    reading.wait_for(1)
    with log.open("a") as stream:
        stream.write("ond\nthird\n")
    reading.wait_for(3)
    assert reading.stop() == ["first", "second", "third"]


def test_file_rotated_with_a_late_writer(tmp_path: Path, follow: Follow) -> None:
    """Logrotate with ``create``: the writer keeps the old file for a while."""
    log = tmp_path / "server.log"
    write(log, numbered(0, 10))
    reading = follow(FileSource(log, from_start=True))
    reading.wait_for(10)
    with log.open("a") as writer:
        log.rename(tmp_path / "server.log.1")
        log.touch()
        time.sleep(0.5)
        writer.write("".join(f"{line}\n" for line in numbered(10, 20)))
    reading.wait_for(20)
    write(log, numbered(20, 30))
    reading.wait_for(30)
    assert reading.stop() == numbered(0, 30)


def test_file_copied_and_truncated(tmp_path: Path, follow: Follow) -> None:
    """Logrotate's ``copytruncate``: what was not read before is in the copy."""
    log = tmp_path / "server.log"
    write(log, numbered(0, 10))
    reading = follow(FileSource(log, from_start=True))
    reading.wait_for(10)
    source = random.Random(1)
    written = 10
    for rotation in range(8):
        for part in range(source.randint(5, 30)):
            if part == 2:
                time.sleep(0.3)  # where a look finds an empty file, what was written and truncated since is not seen
            number = source.randint(1, 20)
            write(log, numbered(written, written + number))
            written += number
            time.sleep(source.choice((0, 0, 0.02)))
        (tmp_path / f"server.log.{rotation}").write_bytes(log.read_bytes())
        os.truncate(log, 0)
        time.sleep(0.3)
    reading.wait_for(written)
    assert sorted(reading.stop(), key=lambda line: int(line.split()[1])) == numbered(0, written)
    assert reading.source.bytes_lost == 0


def rename(log: Path) -> None:
    """As logrotate: .1 becomes .2, the log becomes .1."""
    for number in (2, 1):
        if (old := log.with_name(f"{log.name}.{number}")).exists():
            old.rename(log.with_name(f"{log.name}.{number + 1}"))
    log.rename(log.with_name(f"{log.name}.1"))


def copy_and_truncate(log: Path) -> None:
    log.with_name(f"{log.name}-{time.time_ns() // 1000}").write_bytes(log.read_bytes())
    os.truncate(log, 0)


@pytest.mark.parametrize("rotate", [rename, copy_and_truncate])
@pytest.mark.parametrize("state", [False, True])
def test_file_rotated_often_between_two_looks(
    tmp_path: Path, follow: Follow, rotate: Callable[[Path], None], state: bool
) -> None:
    log = tmp_path / "server.log"

    def start() -> Followed:
        kept = PositionFile(tmp_path / "state") if state else None
        return follow(FileSource(log, from_start=True, state=kept))

    write(log, numbered(0, 10))
    reading = start()
    reading.wait_for(10)
    first = reading.stop() if state else []  # with a state: while no llamatel runs
    write(tmp_path / "server.log.8081", ["another server's"])
    for part in range(3):
        write(log, numbered(10 + 10 * part, 20 + 10 * part))
        time.sleep(0.01)  # a tick of the file system's clock
        rotate(log)
    write(log, numbered(40, 80))  # larger than at the last look
    if state:
        reading = start()
    reading.wait_for(80 - len(first))
    assert first + reading.stop() == numbered(0, 80)
    assert reading.source.bytes_lost == 0


def test_file_truncated_under_a_writer_without_append(tmp_path: Path, follow: Follow) -> None:
    """``llama-server > log``: the writer continues at its offset, so the file starts with a hole."""
    log = tmp_path / "server.log"
    with log.open("wb", buffering=0) as writer:
        for line in numbered(0, 1000):
            writer.write(f"{line}\n".encode())
        reading = follow(FileSource(log, from_start=True))
        reading.wait_for(1000)
        os.truncate(log, 0)
        time.sleep(0.5)
        for line in numbered(1000, 1100):
            writer.write(f"{line}\n".encode())
        reading.wait_for(1100)
    assert reading.stop() == numbered(0, 1100)


def test_file_with_a_hole_of_5_gb(tmp_path: Path, follow: Follow) -> None:
    log = tmp_path / "server.log"
    log.write_text("first\n")
    reading = follow(FileSource(log, from_start=True))
    reading.wait_for(1)
    with log.open("r+b") as writer:
        writer.truncate(0)
        writer.seek(5_000_000_000)
        writer.write(b"second\nthird\n")
    reading.wait_for(3)
    assert reading.stop() == ["first", "second", "third"]


def test_file_appended_during_the_search_for_a_hole(
    tmp_path: Path, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seek, appended = tmp_path / "log", os.lseek, iter(range(3, 100))
    write(path, numbered(0, 3))

    def slow_seek(descriptor: int, offset: int, whence: int) -> int:
        try:
            return seek(descriptor, offset, whence)
        except OSError:  # at the end of the file, which grows before the reader continues
            if (number := next(appended, None)) is not None:
                write(path, numbered(number, number + 1))
            raise

    monkeypatch.setattr(os, "lseek", slow_seek)
    followed = follow(FileSource(path, from_start=True))
    followed.wait_for(100)
    assert followed.stop() == numbered(0, 100)
    assert followed.source.bytes_lost == 0


def test_file_counts_lost_bytes(tmp_path: Path, follow: Follow, caplog: pytest.LogCaptureFixture) -> None:
    """A hole that starts after the read position is as long as the lost bytes."""
    log = tmp_path / "server.log"
    write(log, numbered(0, 10))
    size = log.stat().st_size
    reading = follow(FileSource(log, from_start=True))
    reading.wait_for(10)
    with log.open("r+b") as writer:
        writer.seek(size + 100_000)
        writer.write(b"later\n")
    reading.wait_for(11)
    assert reading.stop() == [*numbered(0, 10), "later"]
    assert reading.source.bytes_lost == 100_000
    assert caplog.text.count("could be read: requests in them are missing") == 1


def test_file_counts_bytes_lost_to_truncation(tmp_path: Path, follow: Follow) -> None:
    """The writer does not append: where the hole ends is where it was, also after several truncations."""
    log = tmp_path / "server.log"
    with log.open("wb", buffering=0) as writer:
        writer.write(b"first\n")
        reading = follow(FileSource(log, from_start=True))
        reading.wait_for(1)
        os.truncate(log, 0)
        time.sleep(0.5)
        writer.seek(1000, os.SEEK_CUR)  # written and truncated between two looks
        writer.write(b"second\n")
        reading.wait_for(2)
        os.truncate(log, 0)
        time.sleep(0.5)
        writer.write(b"third\n")
        reading.wait_for(3)
    assert reading.stop() == ["first", "second", "third"]
    assert reading.source.bytes_lost == 1000


def test_file_created_later(tmp_path: Path, follow: Follow) -> None:
    log = tmp_path / "server.log"
    reading = follow(FileSource(log))
    time.sleep(0.3)
    write(log, numbered(0, 5))
    reading.wait_for(5)
    assert reading.stop() == numbered(0, 5)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_file_encodings(tmp_path: Path, follow: Follow, encoding: str) -> None:
    lines = [f"{line} \u00e4\u20ac\U0001f999" for line in numbered(0, 3000)]
    data = "".join(f"{line}\r\n" for line in lines).encode(encoding)
    if encoding == "utf-16-be":
        data = b"\xfe\xff" + data
    log = tmp_path / "server.log"
    log.write_bytes(data[:70_001])
    reading = follow(FileSource(log, from_start=True))
    with log.open("ab") as writer:
        writer.write(data[70_001:])
    reading.wait_for(3000)
    assert [line.lstrip("\ufeff") for line in reading.stop()] == lines


@pytest.mark.parametrize("members", [1, 3])
def test_file_gzip(tmp_path: Path, follow: Follow, members: int) -> None:
    log = tmp_path / "server.log.gz"
    text = ["".join(f"{line}\n" for line in numbered(part * 5000, part * 5000 + 5000)) for part in range(members)]
    log.write_bytes(b"".join(gzip.compress(each.encode()) for each in text))
    assert follow(FileSource(log)).end() == numbered(0, members * 5000)
    with log.open("rb") as stream:
        assert follow(FileSource("standard input", descriptor=stream.fileno())).end() == numbered(0, members * 5000)


def test_file_gzip_broken(tmp_path: Path, follow: Follow) -> None:
    log = tmp_path / "server.log.gz"
    log.write_bytes(
        gzip.compress(b"".join(os.urandom(1000).hex().encode() + b"\n" for _ in range(100)))[:9000] + b"xx" * 99
    )
    reading = follow(FileSource(log))
    reading.end()
    assert reading.error is None or "gzip data is broken" in str(reading.error)


# -- the position -----------------------------------------------------------------------------------------------------


def test_position_survives_restarts(tmp_path: Path, follow: Follow) -> None:
    log, state = tmp_path / "server.log", tmp_path / "state.json"
    write(log, numbered(0, 1000))
    first = follow(FileSource(log, from_start=True, state=PositionFile(state)))
    first.wait_for(1000)
    with log.open("a") as stream:
        stream.write("half a li")
    time.sleep(0.3)
    assert first.stop() == numbered(0, 1000)
    with log.open("a") as stream:
        stream.write("ne\n")
    write(log, numbered(1000, 1500))
    second = follow(FileSource(log, from_start=True, state=PositionFile(state)))
    second.wait_for(501)
    assert second.stop() == ["half a line", *numbered(1000, 1500)]
    assert second.repeated == numbered(0, 1000)
    assert state.stat().st_mode & 0o777 == 0o600
    third = follow(FileSource(log, state=PositionFile(state)))
    time.sleep(0.5)
    assert third.stop() == []


def test_position_within_a_long_line_is_its_start(tmp_path: Path, follow: Follow) -> None:
    """The rest of a client's text is never read as a line of its own."""
    log, state = tmp_path / "server.log", tmp_path / "state.json"
    write(log, numbered(0, 10))
    text = "forged " * 200_000
    with log.open("a") as stream:
        stream.write(text)
    first = follow(FileSource(log, from_start=True, state=PositionFile(state)))
    first.wait_for(11)
    time.sleep(0.3)
    cut = first.stop()
    assert cut[:10] == numbered(0, 10)
    write(log, ["end", *numbered(10, 20)])
    second = follow(FileSource(log, state=PositionFile(state)))
    second.wait_for(11)
    assert second.stop() == [*cut[10:], *numbered(10, 20)]


def test_position_survives_rotation(tmp_path: Path, follow: Follow) -> None:
    log, state = tmp_path / "server.log", tmp_path / "state.json"
    write(log, numbered(0, 10))
    first = follow(FileSource(log, from_start=True, state=PositionFile(state)))
    first.wait_for(10)
    first.stop()
    write(log, numbered(10, 20))
    log.rename(tmp_path / "server.log.1")
    write(log, ["other", *numbered(20, 30)])
    second = follow(FileSource(log, state=PositionFile(state)))
    second.wait_for(21)
    assert second.stop() == [*numbered(10, 20), "other", *numbered(20, 30)]


def test_position_of_replaced_file(tmp_path: Path, follow: Follow, caplog: pytest.LogCaptureFixture) -> None:
    log, state = tmp_path / "server.log", tmp_path / "state.json"
    write(log, numbered(0, 10))
    first = follow(FileSource(log, from_start=True, state=PositionFile(state)))
    first.wait_for(10)
    first.stop()
    log.unlink()
    write(log, ["new", "lines"])
    second = follow(FileSource(log, state=PositionFile(state)))
    second.wait_for(2)
    assert second.stop() == ["new", "lines"]
    assert "is not the file that was read before: it is read from its start" in caplog.text


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"offset": -5}', '{"offset": 5, "head_length": "x"}', "[" * 100_000, '{"offset": 1e400}'],
)
def test_position_file_broken(tmp_path: Path, content: str) -> None:
    state = tmp_path / "state.json"
    state.write_text(content)
    assert PositionFile(state).load() is None


def test_position_file_reports_a_kill(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, position = tmp_path / "state.json", Position(Fingerprint.of_bytes(b"head"), 4)
    PositionFile(state).save(position, ended=True)
    assert PositionFile(state).load() == position
    assert not caplog.records
    PositionFile(state).save(position)
    assert PositionFile(state).load() == position
    assert "llamatel was killed" in caplog.text


def test_position_file_in_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a file in a folder that can be written to"):
        PositionFile(tmp_path / "missing" / "state.json")
    with pytest.raises(UsageError, match="cannot be used with a stream"):
        open_log("/dev/null", state=str(tmp_path / "state.json"))


# -- streams ----------------------------------------------------------------------------------------------------------


def test_fifo_without_a_writer_stops_at_once(tmp_path: Path, follow: Follow) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = follow(open_log(str(fifo)))
    started = time.monotonic()
    time.sleep(0.3)
    assert reading.stop() == []
    assert time.monotonic() - started < 10


def test_fifo_with_one_writer_after_another(tmp_path: Path, follow: Follow) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = follow(open_log(str(fifo)))
    for start in (0, 10):
        write(fifo, numbered(start, start + 10), "w")
        reading.wait_for(start + 10)
    assert reading.stop() == numbered(0, 20)


def test_stream_backlog_then_lines(follow: Follow) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"one\ntwo\n")
    source = StreamSource(reader, "a pipe")
    reading = follow(source)
    reading.wait_for(2)
    os.write(writer, b"three\nfour")
    reading.wait_for(3)
    os.close(writer)
    assert reading.end() == ["one", "two", "three", "four"]
    os.close(reader)


def test_stdin_redirected_from_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "server.log"
    write(log, numbered(0, 10))
    saved = os.dup(0)
    try:
        with log.open() as stream:
            os.dup2(stream.fileno(), 0)
        source = open_log("-")
        assert source.blocking
        assert [line for batch in source.batches() if isinstance(batch, Backlog) for lines, _ in batch.batches()
                for line in lines] == numbered(0, 10)  # fmt: skip
    finally:
        os.dup2(saved, 0)
        os.close(saved)
