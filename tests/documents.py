"""The code blocks of the documentation, and a script for each page that runs them as a reader would.

A comment before a fenced block defines what a test does with it (``BLOCK_HELP``). All blocks of a page share one
folder, which contains ``model.gguf``, and their own network, so that default ports are free.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from llamatel.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent

COMMANDS = ("sh", "bash", "console", "shell", "python")
"""Languages of blocks that readers run: each must be marked."""

BLOCK_HELP = """put one of these before the block, on the line above it:
<!-- run -->                    a test runs it; it has to succeed
<!-- start: TEXT -->            a test starts it, waits until it has printed TEXT, and stops it after the last block
<!-- file: NAME -->             a test writes it to the file NAME for the blocks after it
<!-- not run: REASON -->        what it needs that a test machine lacks, or which test runs it"""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w+-]*)")
_MARK = re.compile(r"<!-- *(?P<word>run|start|file|not run)(?:: *(?P<argument>.+?))? *-->")


@dataclass(frozen=True, slots=True)
class Block:
    """One code block."""

    line: int
    """Of its first line, from 1."""
    language: str
    """Empty for an indented block."""
    text: str
    mark: str | None = None
    """run, start, file or not run."""
    argument: str = ""


def blocks(text: str) -> list[Block]:
    """The code blocks of a Markdown text, fenced and indented, in order."""
    return list(_blocks(text.splitlines()))


def _blocks(lines: list[str]) -> Iterator[Block]:
    last, index = "", 0
    while index < len(lines):
        fence = _FENCE.match(lines[index])
        indented = not fence and lines[index].startswith("    ") and not last.lstrip().startswith(("-", "*", "|"))
        if fence or (indented and not last):
            start = index + 1 if fence else index
            end = start
            while end < len(lines) and (
                not lines[end].strip().startswith("```") if fence else lines[end].startswith("    ") or not lines[end]
            ):
                end += 1
            cut = len(fence["indent"]) if fence else 4
            before = lines[start - 2 if fence else max(start - 2, 0)] if start > 1 else ""
            mark = _MARK.search(before)
            yield Block(
                start + 1,
                fence["language"] if fence else "",
                "\n".join(line[cut:] for line in lines[start:end]).rstrip() + "\n",
                mark["word"] if mark else None,
                (mark["argument"] or "") if mark else "",
            )
            index, last = end + 1 if fence else end, ""
            continue
        last = lines[index].strip()
        index += 1


def documents() -> list[Path]:
    """The documentation: README, CONTRIBUTING, docs/, the READMEs of deploy/."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")]
    return sorted(pages)


def script(marked: list[Block]) -> str:
    """Return a shell script that runs these blocks in order by their marks and stops at the first failure.

    Started blocks are terminated by SIGTERM after the last block and must exit without error.
    """
    parts = ["set -eu", "[ ! -e /usr/sbin/ip ] || ip link set lo up || true"]
    ends: list[str] = []
    for number, block in enumerate(marked):
        parts.append(f"echo '--- line {block.line}' >&2")
        if block.mark == "file":
            parts += [
                f"mkdir -p $(dirname {shlex.quote(block.argument)})",
                _here(f"cat > {block.argument}", block.text),
            ]
        elif block.mark == "run":
            parts.append(_here("python -", block.text) if block.language == "python" else block.text)
        elif block.mark == "start":
            name = f".started-{number}"
            command = "exec " + block.text.strip()
            parts += [
                f"( {command} ) > {name} 2>&1 & pid{number}=$!",
                f"tries=600; until grep -qF {shlex.quote(block.argument)} {name}; do",
                f"  kill -0 $pid{number} 2>/dev/null && [ $tries -gt 0 ] || {{ cat {name} >&2; exit 1; }}",
                "  tries=$((tries - 1)); sleep 0.1",
                "done",
            ]
            ends.insert(0, f"kill -TERM $pid{number} && wait $pid{number}")
    return "\n".join([*parts, *ends]) + "\n"


def _here(command: str, text: str) -> str:
    return f"{command} <<'END-OF-BLOCK'\n{text}END-OF-BLOCK"


def llamatel_commands(block: Block) -> Iterator[list[str]]:
    """Return the arguments of each ``llamatel ...`` command line in a block."""
    text = re.sub(r"\\\n", " ", block.text)
    for line in text.splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        reader.whitespace_split = True
        reader.commenters = "#"
        try:
            words = list(reader)
        except ValueError:  # not a shell line, for example an apostrophe in prose
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("|&;"):
                while command and ("=" in command[0] or command[0] == "$"):
                    command.pop(0)
                if command and command[0] == "llamatel":
                    yield command[1:]
                command = []
            else:
                command.append(word)


def complaint(words: list[str]) -> str | None:
    """Return the error of a llamatel command line, or None."""
    command: click.Command = cli
    words = words[: words.index("--")] if "--" in words else words
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            return f"there is no {words[0]}"
        command, words = found, words[1:]
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in _flags(command)]
    return f"{command.name} has no {', '.join(unknown)}" if unknown else None


def _flags(command: click.Command) -> set[str]:
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)} | {
        "-h",
        "--help",
        "--version",
    }
