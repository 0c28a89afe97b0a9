"""The documentation is correct: its commands run, its flags and files exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from llamatel.cli.main import COMMANDS as CLI_COMMANDS
from llamatel.cli.main import cli
from tests.documents import BLOCK_HELP, COMMANDS, ROOT, Block, blocks, complaint, documents, llamatel_commands, script

PAGES = [path.relative_to(ROOT).as_posix() for path in documents()]
UNMARKED = ("README.md", "CONTRIBUTING.md")
"""Pages without marks: only the syntax of their commands is checked."""


def read(page: str) -> list[Block]:
    return blocks((ROOT / page).read_text())


def marked(page: str) -> list[Block]:
    return [block for block in read(page) if block.mark in ("run", "start", "file")]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in UNMARKED])
def test_docs_blocks_are_marked(page: str) -> None:
    unmarked = [f"{page}:{block.line}" for block in read(page) if block.language in COMMANDS and block.mark is None]
    assert not unmarked, f"{', '.join(unmarked)}: {BLOCK_HELP}"
    silent = [
        f"{page}:{block.line}" for block in read(page) if block.mark in ("not run", "file") and not block.argument
    ]
    assert not silent, f"{', '.join(silent)}: say why, or which file"


def isolated() -> list[str]:
    """Return the prefix that runs a command in its own network, where default ports are free; [] if not possible."""
    prefix = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
        return prefix
    return []


_NAMED = re.compile(r"`((?:llamatel|collectors|dashboards|tests|benchmarks|deploy|docs)/[\w./-]+)(?:::(\w+))?")


@pytest.mark.parametrize("page", PAGES)
def test_docs_named_files_and_tests_exist(page: str) -> None:
    for path, test in _NAMED.findall((ROOT / page).read_text()):
        assert (ROOT / path).exists(), f"{page} names {path}"
        assert f"def {test}" in (ROOT / path).read_text() if test else True, f"{page} names {path}::{test}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if marked(page)])
def test_docs_commands_run(page: str, tiny_model: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if any("llama_cpp" in block.text or "llama-cpp-python" in block.text for block in marked(page)):
        request.getfixturevalue("llama_cpp")
    shutil.copy(tiny_model, tmp_path / "model.gguf")
    (tmp_path / ".script").write_text(script(marked(page)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "OTEL_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [*isolated(), "sh", ".script"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, f"{page}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES)
def test_docs_commands_and_flags_exist(page: str) -> None:
    found = {
        f"{page}:{block.line}: llamatel {' '.join(command)}": complaint(command)
        for block in read(page)
        for command in llamatel_commands(block)
    }
    assert not {line: error for line, error in found.items() if error is not None}


@pytest.mark.parametrize("page", PAGES)
def test_docs_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for block in read(page) for name in re.findall(r"^\s*make ([a-z]+)", block.text, re.MULTILINE)} | set(
        re.findall(r"`make ([a-z]+)", (ROOT / page).read_text())
    )
    assert named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_docs_data_blocks_parse(page: str) -> None:
    for block in read(page):
        if block.language in ("yaml", "yml"):
            list(yaml.safe_load_all(block.text))
        elif block.language == "json":
            json.loads(block.text)


@pytest.mark.parametrize("page", PAGES)
def test_docs_links(page: str) -> None:
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) if "://" not in link]
    assert not [link for link in links if not ((ROOT / page).parent / link).exists()]


def test_docs_checks_find_errors() -> None:
    assert complaint(["serve", "model.gguf", "--no-such-flag"]) == "serve has no --no-such-flag"
    assert complaint(["dance"]) == "there is no dance"
    assert complaint(["serve", "model.gguf", "-c", "4096", "--", "--whatever"]) is None
    assert set(CLI_COMMANDS) == set(cli.list_commands(click.Context(cli)))
    page = (
        "text\n\n<!-- run -->\n```sh\nKEY=1 llamatel serve a.gguf | llamatel attach --log -\n```\n\n    llamatel demo\n"
    )
    fenced, indented = blocks(page)
    assert (fenced.mark, fenced.language, fenced.line) == ("run", "sh", 5)
    assert [*llamatel_commands(fenced)] == [["serve", "a.gguf"], ["attach", "--log", "-"]]
    assert [*llamatel_commands(indented)] == [["demo"]]


def test_docs_script_stops_at_first_failure(tmp_path: Path) -> None:
    def run(text: str) -> int:
        (tmp_path / "script").write_text(script(blocks(text)))
        return subprocess.run(["sh", "script"], cwd=tmp_path, capture_output=True, check=False).returncode

    def block(mark: str, text: str) -> str:
        return f"\n<!-- {mark} -->\n```sh\n{text}\n```\n"

    waiting = "sh -c 'trap \"exit 0\" TERM; echo up; while :; do sleep 0.05; done'"
    assert run(block("run", "true")) == 0
    assert run(block("run", "false") + block("run", "true")) != 0
    assert run(block("start: up", waiting) + block("run", "true")) == 0
    assert run(block("start: up", "echo down") + block("run", "true")) != 0
    assert run(block("file: a/b.txt", "one") + block("run", "grep -q one a/b.txt")) == 0
