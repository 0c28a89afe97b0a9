"""The spool: no span is lost while the OTLP endpoint is away, over restarts and kills too."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamatel.errors import PipelineError
from llamatel.telemetry.otlp_spool import Spool
from llamatel.telemetry.otlp_transport import Sent
from tests.parts import OtlpSink, wait_until
from tests.parts.small_disk import small_disk
from tests.telemetry import Taking, export_to

REFUSED = Sent(False, "connection refused", retry=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.otlp.gz"))


def test_spool_order_and_counts(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for number in range(3):
        spool.put(b"message %d" % number, 10 + number)
    assert (spool.spans, len(spool)) == (33, 3)
    assert spool.size == sum(path.stat().st_size for path in (tmp_path / "spool").glob("*.gz"))
    assert spool.oldest() == (b"message 0", 10)
    spool.remove()
    spool.close()
    again = Spool(tmp_path / "spool")
    assert again.oldest() == (b"message 1", 11)
    assert again.spans == 23


def test_spool_private(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put(b"message", 1)
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    [path] = (tmp_path / "spool").glob("*.gz")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_spool_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_files=3)
    for number in range(5):
        spool.put(b"%d" % number, 1 + number)
    assert spool.oldest() == (b"2", 3)
    assert spool.dropped == 1 + 2
    small = Spool(tmp_path / "small", max_bytes=200)
    for _ in range(20):
        small.put(os.urandom(40), 1)
    assert small.size <= 200
    assert small.dropped + small.spans == 20


def test_spool_foreign_and_broken_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("keep")
    folder = tmp_path / "spool"
    spool = Spool(folder)
    spool.put(b"good", 5)
    spool.close()
    (folder / f"{1:020d}-7.otlp.gz").write_bytes(b"not gzip")
    (folder / f"{2:020d}-7.otlp.gz").symlink_to(secret)
    (folder / f"{3:020d}-7.otlp.gz.tmp").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    again = Spool(folder)
    assert again.oldest() == (b"good", 5)
    assert again.dropped == 7
    assert secret.read_text() == "keep"
    assert (folder / "notes.txt").exists()
    assert not list(folder.glob("*.tmp"))


def test_spool_in_use(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(PipelineError, match="another llamatel"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_spool_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match="cannot use the spool"):
        Spool(tmp_path / "file" / "spool")


def test_spool_disk_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        spool = Spool(disk.path / "spool")
        disk.fill()
        with pytest.raises(OSError, match="No space"):
            spool.put(os.urandom(20_000), 1)
        assert not list((disk.path / "spool").glob("*otlp*"))
        disk.free()
        spool.put(os.urandom(20_000), 2)
        assert spool.spans == 2
        spool.close()


def test_export_through_spool(tmp_path: Path) -> None:
    taking = Taking(*[REFUSED] * 2)
    export = export_to(taking, spool=Spool(tmp_path), batch_size=1, delay_s=0.05)
    for number in range(5):
        export.put(b"\x0a\x02%02d" % number)
        time.sleep(0.02)
    wait_until(lambda: export.exported == 5, 20, "all spans")
    assert not any(export.lost().values())
    assert export.spooled() == (0, 0)
    assert names(tmp_path) == []
    assert export.close(time.monotonic() + 5)


def test_export_rejected_message_is_not_kept(tmp_path: Path) -> None:
    taking = Taking(Sent(False, "HTTP 400"))
    export = export_to(taking, spool=Spool(tmp_path), delay_s=0.05)
    export.put(b"\x0a\x0200")
    wait_until(lambda: export.lost().get("export_failed") == 1, 20, "the loss")
    assert names(tmp_path) == []
    export.close(time.monotonic() + 5)


def test_export_ends_with_endpoint_away(tmp_path: Path) -> None:
    away = Taking(*[REFUSED] * 1000)
    export = export_to(away, spool=Spool(tmp_path), delay_s=60.0)
    for _ in range(700):
        export.put(b"\x0a\x0200")
    export.close(time.monotonic() + 5)
    assert not any(export.lost().values())
    later = Taking()
    again = export_to(later, spool=Spool(tmp_path), delay_s=60.0)
    wait_until(lambda: again.exported == 700, 20, "what was left")
    again.close(time.monotonic() + 5)


LOG = Path(__file__).parent / "golden" / "logs" / "llama-server.log"


def attach(folder: Path, log: Path, endpoint: str) -> subprocess.Popen[bytes]:
    argv = [
        sys.executable, "-m", "llamatel.cli.main", "attach", "--log", str(log), "--from-start", "--metrics-addr",
        "none", "--otlp-endpoint", endpoint, "--otlp-protocol", "http/protobuf", "--otlp-spool", str(folder),
    ]  # fmt: skip
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OTEL_BSP_SCHEDULE_DELAY": "100"},
    )  # fmt: skip


def test_attach_killed_while_the_endpoint_is_away(tmp_path: Path) -> None:
    with OtlpSink(status=503) as sink:
        first = attach(tmp_path / "spool", LOG, sink.endpoint)
        wait_until(lambda: sink.requests and names(tmp_path / "spool"), 60, "a spooled batch")
        time.sleep(1.0)
        first.send_signal(signal.SIGKILL)
        first.wait()
        spooled = sum(int(name[21:].split(".")[0]) for name in names(tmp_path / "spool"))
        assert spooled
        sink.status = 200
        empty = tmp_path / "empty"
        empty.write_text("")
        second = attach(tmp_path / "spool", empty, sink.endpoint)
        wait_until(lambda: not names(tmp_path / "spool"), 60, "an empty spool")
        assert len(sink.spans()) >= spooled
        second.terminate()
        assert second.wait(20) == 0
