"""The table of llama-server's flags, compared with ``--help`` of the available builds, and the parser."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from llamatel.errors import UsageError
from llamatel.flags.flag_table import BY_NAME, FLAGS, NEWER, Flag, closest_flag, flag_of
from llamatel.flags.flag_values import KINDS
from llamatel.flags.parse import describe, given_flags, parse_server_flags
from llamatel.flags.server_settings import ServerSettings
from llamatel.flags.tensor_override import TensorOverride
from llamatel.metrics import SETTINGS

_NAMES = re.compile(r"((?:--?[A-Za-z][\w.-]*(?:,\s+)?)+)(?:\s(\S.*?))?(?:\s{2,}.*)?$")
_VALUE = re.compile(r"[\[<{]|[A-Z][A-Za-z0-9_]*\b|lo-hi|none,|P0")


def documented(text: str) -> list[tuple[tuple[str, ...], int, str | None]]:
    """Names, number of values and variable of each flag in ``llama-server --help``."""
    found: list[tuple[tuple[str, ...], int, str | None]] = []
    for line in text.splitlines():
        if line.startswith("-") and not line.startswith("-----"):
            match = _NAMES.match(line)
            assert match is not None, line
            names = tuple(re.findall(r"--?[A-Za-z][\w.-]*", match[1]))
            column = line[: 40 if len(line) > 40 and line[39] == " " else len(line)]
            hint = column[match.end(1) :].strip()
            values = 0 if not hint or not _VALUE.match(hint) else 2 if re.fullmatch(r"[A-Z]+ [A-Z]+", hint) else 1
            found.append((names, values, None))
        if (variable := re.search(r"\(env: (\w+)\)", line)) is not None:
            found[-1] = (*found[-1][:2], variable[1])
    return found


def compare_with(text: str, missing: frozenset[str] = frozenset()) -> None:
    """Assert that the table has the documented flags; a build may lack those in ``missing``, or their variables."""
    theirs = {frozenset(names): (values, variable) for names, values, variable in documented(text)}
    ours = {frozenset((*flag.names, *flag.negated)): (flag.values, flag.variable) for flag in FLAGS}
    for names in [names for names in ours if names <= missing]:
        if names not in theirs:
            del ours[names]
        elif theirs[names][1] is None:
            ours[names] = (ours[names][0], None)
    assert theirs == ours


def test_flag_table_matches_built_server(llama_server_binary: Path) -> None:
    done = subprocess.run([llama_server_binary, "--help"], capture_output=True, text=True, check=True)
    compare_with(done.stdout, NEWER)


def test_flag_table_matches_wheel() -> None:
    command = [sys.executable, "-m", "llamatel.llama.server.xllamacpp_server", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    compare_with(done.stdout, NEWER)


def test_flag_table_matches_newest_server(sid_server: Path) -> None:
    version = subprocess.run([sid_server, "--version"], capture_output=True, text=True, check=True).stderr
    print(version)  # the current version of the suite
    done = subprocess.run([sid_server, "--help"], capture_output=True, text=True, check=True)
    compare_with(done.stdout)


def test_flag_table_is_consistent() -> None:
    settings = {field.name for field in fields(ServerSettings)}
    assert {flag.setting for flag in FLAGS if flag.setting} <= settings
    assert {flag.kind for flag in FLAGS if flag.kind} == set(KINDS)
    assert len(BY_NAME) == sum(len(flag.names) + len(flag.negated) for flag in FLAGS)
    assert all(bool(flag.setting) <= bool(flag.kind and flag.role) for flag in FLAGS)
    assert set(SETTINGS) <= {
        flag.long_name[2:].replace("-", "_") for flag in FLAGS if flag.role in ("plan", "behaviour")
    }


VALUES = {
    "int": "77", "slots": "3", "layers": "12", "text": "x", "cache-type": "q8_0", "split-mode": "row", "shares": "3,1",
    "mibs": "512,1024", "names": "A,B", "files": "A,B", "scaled-files": "A:0.5",
    "overrides": "exps=CPU", "n-cpu-moe": "5",
    "n-cpu-ffn": "5", "on/off": "off", "on/off/auto": "on", "spec-types": "draft-mtp",
}  # fmt: skip


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.setting and flag.role != "removed"], ids=str)
def test_parse_server_flags_flag_equals_variable(flag: Flag) -> None:
    text = VALUES.get(str(flag.kind), "on")
    settings = {parse_server_flags([name, *[text] * flag.values], environ={}) for name in flag.names}
    assert {getattr(each, str(flag.setting)) for each in settings} != {
        getattr(ServerSettings(), str(flag.setting))
    } or (flag.negated)
    assert len({getattr(each, str(flag.setting)) for each in settings}) == 1
    if flag.variable is not None:
        by_variable = parse_server_flags([], environ={flag.variable: text})
        assert getattr(by_variable, str(flag.setting)) == getattr(settings.pop(), str(flag.setting))
        assert by_variable.given == {flag.setting}
    for name in flag.negated:
        off = parse_server_flags([name], environ={})
        assert getattr(off, str(flag.setting)) is False
        assert flag.off_variable is not None
        assert off == parse_server_flags([], environ={flag.off_variable: "anything"})


def test_parse_server_flags_override_environment() -> None:
    environ = {
        "LLAMA_ARG_CTX_SIZE": "1",
        "LLAMA_ARG_BATCH": "64",
        "LLAMA_ARG_SWA_FULL": "no",
        "LLAMA_ARG_KV_UNIFIED": "0",
    }
    settings = parse_server_flags(["-c", "4096", "--ctx_size", "8192"], environ=environ)
    assert (settings.ctx_size, settings.batch_size, settings.swa_full) == (8192, 64, False)
    assert settings.given == {"ctx_size", "batch_size", "kv_unified"}
    assert given_flags(settings) == {"ctx-size": "8192", "batch-size": "64", "kv-unified": "false"}


@pytest.mark.parametrize(
    ("words", "environ", "message"),
    [
        (["-c", "32k"], {}, "llama-server reads it as 32"),
        (["-c=512"], {}, "error: invalid argument: -c=512"),
        (["-c"], {}, "-c needs a value"),
        (["word"], {}, "'word' belongs to no flag"),
        (["--draft", "4"], {}, "the argument has been removed"),
        (["-ncmoe", "-1"], {}, "-ncmoe does not take '-1'"),
        (["-ot", "(=CPU"], {}, "'(' is not a regular expression"),
        ([], {"LLAMA_ARG_CTX_SIZE": ""}, "LLAMA_ARG_CTX_SIZE does not take ''"),
        ([], {"LLAMA_ARG_KV_UNIFIED": "maybe"}, "LLAMA_ARG_KV_UNIFIED does not take 'maybe'"),
    ],
)
def test_parse_server_flags_refused(words: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_server_flags(words, environ=environ)
    assert message in str(raised.value)


def test_parse_server_flags_refuses_like_llama_server(llama_server_binary: Path) -> None:
    for words in (["-c=512"], ["word"], ["--draft", "4"], ["-ncmoe", "-1"], ["-c"], ["-np", "0"], ["-fa", "maybe"]):
        done = subprocess.run([llama_server_binary, *words], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1, words
        with pytest.raises(UsageError):
            parse_server_flags(words, environ={})


def test_parse_server_flags_lenient() -> None:
    words = ["-c", "lots", "--new-flag", "3", "-np", "2", "word", "--draft", "5", "-ot", r"(\w+)+x=CPU", "-ngl"]
    settings = parse_server_flags(words, environ={}, lenient=True)
    assert (settings.parallel, settings.draft_max, settings.ctx_size) == (2, 5, None)
    assert settings.not_understood == ("-c", "-ot", "-ngl")
    assert settings.unknown == ("--new-flag", "word")
    assert settings.tensor_overrides == ()


def test_describe_settings_round_trip() -> None:
    text = "-c 4096 -b 512 -ctk q8_0 -nkvo -cmoe -ncmoe 12 -ot exps=CUDA0 -ts 3,1 -fit off --spec-type draft-mtp -np 3"
    settings = parse_server_flags(text.split(), environ={})
    assert set(describe(settings).split()) == set(text.split())
    assert parse_server_flags(describe(settings).split(), environ={}) == settings


def test_parse_server_flags_tensor_override() -> None:
    found = parse_server_flags(["-ncmoe", "2", "-ncffn", "1"], environ={}).tensor_overrides
    assert [override.flag for override in found] == ["-ncmoe 2", "-ncffn 1"]
    experts, dense = found
    assert experts.matches("blk.1.ffn_up_exps.weight")
    assert not experts.matches("blk.2.ffn_up_exps.weight")
    assert not experts.matches("blk.11.ffn_up_exps.weight")
    assert dense.matches("blk.0.ffn_down.weight")
    assert not dense.matches("blk.0.ffn_down_exps.weight")
    assert TensorOverride("exps").matches("blk.7.ffn_gate_up_exps.weight")


def test_flag_table_closest_to_misspelt() -> None:
    assert closest_flag("--ctxsize") == "--ctx-size"
    assert closest_flag("--zzz") is None
    assert flag_of("ctx_size").names[0] == "-c"


@pytest.mark.parametrize(
    "words", ["-md draft.gguf", "-md models/draft.gguf", "-md /m/draft", "-hfd org/draft:Q8_0", "-hfd org/draft"]
)
def test_describe_names_the_draft_models_flag(words: str) -> None:
    assert describe(parse_server_flags(words.split(), environ={})) == words


def test_describe_leaves_out_the_model() -> None:
    assert describe(parse_server_flags(["-hf", "org/m", "-hff", "a/b.gguf", "-c", "512"], environ={})) == "-c 512"
