"""The built wheel and sdist, as a user installs them."""

from __future__ import annotations

import configparser
import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"llamatel", "llamatel_collectors", "llamatel_dashboards"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    argv = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    [wheel] = built.glob("*.whl")
    return wheel


def test_wheel_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert "llamatel/py.typed" in names
    assert {"llamatel/models/tiny.gguf", "llamatel/models/tiny.md"} <= set(names)
    checkout = {
        path.relative_to(ROOT / folder).as_posix()
        for folder in (".", "collectors", "dashboards")
        for package in PACKAGES
        for path in (ROOT / folder / package).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == checkout
    assert {"overview.json", "alerts.yml"} <= {Path(name).name for name in names}


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        headers = email.message_from_bytes(archive.read(metadata))
        points = configparser.ConfigParser()
        points.read_string(archive.read(metadata.replace("METADATA", "entry_points.txt")).decode())
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert (headers["Name"], headers["License-Expression"], headers["Requires-Python"]) == (
        "llamatel",
        "Apache-2.0",
        ">=3.10",
    )
    assert set(headers.get_all("Provides-Extra", [])) == {"server", "llama", "gpu", "plot", "explore", "dev"}
    assert points["console_scripts"]["llamatel"] == "llamatel.cli.start:run"
    assert {"requests", "tokens", "server"} <= set(points["llamatel.collectors"])


def test_sdist_contents(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "llamatel/cli/main.py", "tests/conftest.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "dist/")) or "__pycache__" in name]


def test_wheel_runs_outside_checkout(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    site = environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, text=True)
    # Its dependencies are those of the running environment, after the wheel itself. The .pth files there, an editable
    # llamatel's among them, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*argv: str) -> str:
        done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    output = run(str(environment / "bin" / "llamatel"), "--version")
    assert re.fullmatch(r"llamatel \d+\.\d+\.\d+", output)
    program = "import llamatel.collectors as c; print(c.__file__, sorted(collector.name for collector in c.load()))"
    where, _, collectors = run(str(python), "-c", program).partition(" ")
    assert Path(where).is_relative_to(environment)
    assert {"'requests'", "'server'", "'tokens'"} <= set(collectors.strip("[]").split(", "))


def test_lock_file() -> None:
    lock = (ROOT / "requirements" / "dev.txt").read_text()
    assert "://" not in lock
    assert "--" not in lock
    locked = {line.partition("==")[0] for line in lock.splitlines()}
    project = (ROOT / "pyproject.toml").read_text()
    [core] = re.findall(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert {name.replace("_", "-") for name in re.findall(r'"([\w-]+)>=', core)} <= locked
