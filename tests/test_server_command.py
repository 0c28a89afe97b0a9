"""llama-server's command line from Python arguments; test_server_manager runs real servers with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamatel.errors import UsageError
from llamatel.inputs.credentials import read_api_key
from llamatel.llama.server.server_command import CommandLine, build

pytestmark = pytest.mark.usefixtures("no_settings")

KEY = "sk-very-secret-0123456789"
ALWAYS = ("--host", "127.0.0.1", "--port", "8090", "--metrics", "--log-prefix", "--log-timestamps")


def line(model: str | Path | None = None, **arguments: Any) -> CommandLine:
    return build(model, **{"host": "127.0.0.1", "port": 8090, **arguments})


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(KEY + "\n")
    return path


def test_command_line_omits_unset_arguments() -> None:
    command = line("m.gguf", gpu_layers=None, alias=None)
    assert command.arguments == ("--model", "m.gguf", *ALWAYS)
    assert (command.environment, command.api_key, command.alias) == ({}, None, None)
    assert line().arguments == ALWAYS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gpu_layers": 0}, "--n-gpu-layers 0"),
        ({"gpu_layers": "all"}, "--n-gpu-layers all"),
        ({"ctx_size": 4096}, "--ctx-size 4096"),
        ({"n_parallel": 2}, "--parallel 2"),
        ({"split_mode": "row"}, "--split-mode row"),
        ({"main_gpu": 1}, "--main-gpu 1"),
        ({"cache_type_k": "q8_0", "cache_type_v": "q4_0"}, "--cache-type-k q8_0 --cache-type-v q4_0"),
        ({"batch_size": 512, "ubatch_size": 64}, "--batch-size 512 --ubatch-size 64"),
        ({"tensor_split": (3, 1.5)}, "--tensor-split 3,1.5"),
        ({"tensor_split": "3,1"}, "--tensor-split 3,1"),
        ({"flash_attn": True}, "--flash-attn on"),
        ({"flash_attn": False}, "--flash-attn off"),
        ({"flash_attn": "auto"}, "--flash-attn auto"),
        ({"kv_unified": True}, "--kv-unified"),
        ({"kv_unified": False}, "--no-kv-unified"),
        ({"swa_full": True}, "--swa-full"),
        ({"swa_full": False}, ""),
        ({"extra_args": ["--lookup", "-np", "7"]}, "--lookup -np 7"),
    ],
)
def test_command_line_flags(arguments: dict[str, Any], words: str) -> None:
    assert line(**arguments).arguments == (*ALWAYS, *words.split())


def test_command_line_extra_arguments_last() -> None:
    assert line(ctx_size=1, extra_args=["-c", "2"]).arguments[-4:] == ("--ctx-size", "1", "-c", "2")


def test_command_line_expands_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    assert line("~/m.gguf").arguments[1] == "/home/user/m.gguf"
    assert line(Path("~/m.gguf")).arguments[1] == "/home/user/m.gguf"


@pytest.mark.parametrize(
    ("arguments", "alias"),
    [
        ({"alias": "mine"}, "mine"),
        ({"alias": "mine,yours"}, "mine"),
        ({"extra_args": ["-a", "short"]}, "short"),
        ({"alias": "mine", "extra_args": ["--alias", "last"]}, "last"),
        ({"extra_args": ["-a"]}, None),
    ],
)
def test_command_line_alias(arguments: dict[str, Any], alias: str | None) -> None:
    assert line("m.gguf", **arguments).alias == alias


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": 65536}, "port 65536 is not between 0 and 65535"),
        ({"port": -1}, "port -1 is not"),
        ({"gpu_layer": 3}, "unknown argument 'gpu_layer'"),
        ({"extra_args": ["--api-key"]}, "--api-key needs a value"),
        ({"api_key": KEY, "api_key_file": "keys"}, "not both"),
        ({"api_key_file": "/nowhere/keys"}, "cannot read the API key file /nowhere/keys: No such file"),
        ({"api_key": f"{KEY}\n"}, "the API key contains a line end"),
        ({"port": 0, "extra_args": ["--log-disable"]}, "port 0 needs the server's log"),
        ({"port": 0, "extra_args": ["-lv", "2"]}, "port 0 needs the server's log"),
        ({"extra_args": ["--port", "0", "--verbosity", "0"]}, "port 0 needs the server's log"),
    ],
)
def test_command_line_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        line(**arguments)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("extra", [["-lv", "3"], ["-lv", "1", "-lv", "4"], []])
def test_command_line_port_0_with_log(extra: list[str]) -> None:
    assert line(port=0, extra_args=extra).arguments[3] == "0"


# -- API keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "in_environment"),
    [
        ({"api_key": KEY}, KEY),
        ({"api_key": f"{KEY},other"}, f"{KEY},other"),
        ({"extra_args": ["--api-key", KEY, "-v"]}, KEY),
        ({"extra_args": [f"--api-key={KEY}", "-v"]}, KEY),
        ({"extra_args": ["--api-key", KEY, "-v", "--api-key", "other"]}, f"{KEY},other"),
        ({"api_key": KEY, "extra_args": ["--api-key", "other", "-v"]}, f"{KEY},other"),
        ({"env": {"LLAMA_API_KEY": KEY}}, KEY),
        ({"env": {"LLAMA_API_KEY": "another"}, "api_key": KEY}, KEY),
    ],
)
def test_command_line_api_key_in_environment(arguments: dict[str, Any], in_environment: str) -> None:
    command = line(**arguments)
    assert command.environment == {"LLAMA_API_KEY": in_environment}
    assert command.api_key == KEY
    assert command.arguments == (*ALWAYS, *(["-v"] if "-v" in arguments.get("extra_args", ()) else []))
    assert KEY not in repr(command)
    assert KEY not in str(command)


def test_command_line_inherited_api_key(monkeypatch: pytest.MonkeyPatch, key_file: Path) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", f'"{KEY}",other')  # llama.cpp reads it as a row of CSV
    assert (line().api_key, line().environment) == (KEY, {})
    monkeypatch.setenv("LLAMA_API_KEY", "outer")
    assert line(api_key=KEY).api_key == KEY
    monkeypatch.setenv("LLAMA_ARG_API_KEY_FILE", str(key_file))
    assert line().api_key == KEY


def test_command_line_api_key_file(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ({"api_key_file": key_file}, {"extra_args": ["--api-key-file", str(key_file)]}):
        command = line(**arguments)
        assert command.arguments[-2:] == ("--api-key-file", str(key_file))
        assert (command.environment, command.api_key) == ({}, KEY)
    monkeypatch.setenv("HOME", str(key_file.parent))
    assert line(api_key_file="~/keys").arguments[-1] == str(key_file)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"key", "key"),
        (b"\n\nkey\nother\n", "key"),
        (b"# a comment\nkey\n", "key"),
        (b"a,b\n", "a,b"),
        (b" spaces count \n", " spaces count "),
        ("schlüssel\n".encode(), "schlüssel"),
    ],
)
def test_read_api_key_like_llama_cpp(content: bytes, key: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    assert read_api_key(path) == key


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "contains no key"), (b"\n#only this\n", "contains no key"), (b"\xff\xfe\n", "it is not text")],
)
def test_read_api_key_without_key(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_api_key(path)


def test_command_line_api_key_file_with_crlf(tmp_path: Path) -> None:
    # llama.cpp makes the carriage return part of the key, which no client can then send.
    path = tmp_path / "keys"
    path.write_bytes(f"{KEY}\r\n".encode())
    with pytest.raises(UsageError, match="contains a line end") as caught:
        line(api_key_file=path)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(("words", "variable"), [(["--no-log-jsonl"], "0"), (["--log-jsonl"], None), ([], None)])
def test_command_line_text_log_from_its_first_message(words: list[str], variable: str | None) -> None:
    """llama.cpp's messages about arguments are printed before the flag is parsed: the first message decides."""
    command = build(None, host="127.0.0.1", port=8090, extra_args=words, env={})
    assert command.environment.get("LLAMA_ARG_LOG_JSONL") == variable
