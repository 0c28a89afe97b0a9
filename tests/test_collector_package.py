"""The example of a third-party collector: installed from its folder, and run by the command line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from pathlib import Path

import pytest

from tests.parts import Child, free_port
from tests.servers import complete, without_settings

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "collector_package"


@pytest.fixture(scope="module")
def llamatel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``llamatel`` of an environment in which the example is installed."""
    environment = tmp_path_factory.mktemp("collector") / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    site = environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    # llamatel and its dependencies come from the running environment, including editable installs.
    (site / "llamatel.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, "--no-build-isolation", str(EXAMPLE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    script = environment / "bin" / "llamatel"
    script.write_text(f"#!{python}\nimport sys\nfrom llamatel.cli.main import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return script


def test_collector_package_measures(
    llamatel: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_settings(monkeypatch)
    port, metrics = free_port(), free_port()
    argv: list[str | Path] = [llamatel, "serve", tiny_model, "--port", str(port), "--backend", "xllamacpp"]
    argv += ["--metrics-addr", f"127.0.0.1:{metrics}", "--no-collector", "tokens"]
    child = Child(argv, tmp_path / "serve.log", {"PATIENCE_SECONDS": "0.001"})
    try:
        child.wait_ready(lambda: "ready after" in child.output(), 60)
        for _ in range(3):
            assert complete(f"http://127.0.0.1:{port}", 30) == 200
        slow = ""
        for _ in range(100):
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as answer:
                page = answer.read().decode()
            slow = "".join(re.findall(r"^patience_requests_slow_total\{.*\} (\d+)", page, re.MULTILINE))
            if slow == "3":
                break
            time.sleep(0.05)
        assert slow == "3"
        assert re.search(r'^patience_machine_load\w*\{.*minutes="5".*\} [\d.]+$', page, re.MULTILINE)
        assert re.search(r'^llamatel_collector_success\w*\{.*collector="patience".*\} 1', page, re.MULTILINE)
        assert "llamacpp_kv_cache_capacity" in page
        assert "llamacpp_tokens_total" not in page
    finally:
        os.kill(child.pid, signal.SIGTERM)
        child.stop()


def test_collector_package_is_listed(llamatel: Path, tiny_model: Path) -> None:
    done = subprocess.run(
        [llamatel, "serve", tiny_model, "--collector", "impatience"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no collector 'impatience'" in done.stderr
    assert "patience" in done.stderr.partition("installed are")[2]
