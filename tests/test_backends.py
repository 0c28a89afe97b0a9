"""Which llama.cpp server find_backend selects, and its error when there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from llamatel.errors import BackendNotFound
from llamatel.llama.server import backends
from llamatel.llama.server.backends import Backend, find_backend
from llamatel.llama.server.manager import ServerManager
from tests.servers import complete, script, without_settings

PIP = r"python[\d.]* -m pip install '\.\[server\]' in a clone of llamatel"


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return script(path, "exit 1\n")

    return make


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the xllamacpp wheel look absent."""
    monkeypatch.setattr(backends, "XLLAMACPP", "no_such_module_of_that_name")


def path_of(backend: Backend) -> Path:
    [command] = backend.command
    return Path(command)


def test_find_backend_requested_path_first(program: Callable[[str], Path]) -> None:
    requested, named, found = program("requested/server"), program("named/server"), program("bin/llama-server")
    environ = {"LLAMATEL_LLAMA_SERVER": str(named), "PATH": str(found.parent)}
    backend = find_backend(str(requested), environ)
    assert (backend.name, path_of(backend), backend.why, backend.rejected) == (
        "llama-server", requested, "it was requested", (),
    )  # fmt: skip


def test_find_backend_environment_variable(program: Callable[[str], Path]) -> None:
    named, found = program("named/server"), program("bin/llama-server")
    environ = {"LLAMATEL_LLAMA_SERVER": str(named), "PATH": str(found.parent)}
    for choice in (None, "llama-server"):
        backend = find_backend(choice, environ)
        assert (path_of(backend), backend.why) == (named, "LLAMATEL_LLAMA_SERVER names it")
    environ["LLAMATEL_LLAMA_SERVER"] = "llama-server"  # a name on PATH
    assert path_of(find_backend(None, environ)) == found


def test_find_backend_on_path(program: Callable[[str], Path]) -> None:
    found = program("bin/llama-server")
    backend = find_backend(None, {"LLAMATEL_LLAMA_SERVER": "", "PATH": f"/nowhere:{found.parent}"})
    assert (path_of(backend), backend.why) == (found, "it is on PATH")
    assert backend.rejected == ("LLAMATEL_LLAMA_SERVER is not set",)
    assert path_of(find_backend("llama-server", {"PATH": str(found.parent)})) == found


def test_find_backend_wheel(tmp_path: Path) -> None:
    backend = find_backend(None, {"PATH": str(tmp_path)})
    assert (backend.name, backend.why) == ("xllamacpp", "the wheel is installed")
    assert backend.command == (sys.executable, "-m", "llamatel.llama.server.xllamacpp_server")
    assert backend.version == metadata.version("xllamacpp")
    assert backend.rejected == ("LLAMATEL_LLAMA_SERVER is not set", "no llama-server on PATH")


def test_find_backend_requested_wheel(program: Callable[[str], Path]) -> None:
    environ = {"PATH": str(program("bin/llama-server").parent)}
    assert find_backend("xllamacpp", environ).why == "it was requested"


def test_find_backend_home_and_relative_path(program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = program("bin/server")
    monkeypatch.setenv("HOME", str(path.parent.parent))
    monkeypatch.chdir(path.parent)
    assert path_of(find_backend("~/bin/server", {})) == path
    assert path_of(find_backend("./server", {})) == path


@pytest.mark.parametrize("choice", ["/nowhere/llama-server", "no-such-program-at-all", "/etc/passwd", "/"])
def test_find_backend_requested_not_executable(choice: str) -> None:
    with pytest.raises(BackendNotFound, match=f"^'{choice}' is not an executable llama-server; .*{PIP}$"):
        find_backend(choice)


def test_find_backend_variable_not_executable() -> None:
    with pytest.raises(BackendNotFound, match=r"LLAMATEL_LLAMA_SERVER is '/nowhere/x', .*: correct or unset it"):
        find_backend(None, {"LLAMATEL_LLAMA_SERVER": "/nowhere/x"})


@pytest.mark.usefixtures("no_wheel")
def test_find_backend_none_available(tmp_path: Path) -> None:
    with pytest.raises(BackendNotFound, match=PIP) as caught:
        find_backend(None, {"PATH": str(tmp_path)})
    for reason in ("LLAMATEL_LLAMA_SERVER is not set", "no llama-server on PATH", "wheel is not installed"):
        assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_wheel")
def test_find_backend_requested_wheel_not_installed() -> None:
    with pytest.raises(BackendNotFound, match=f"is not installed; .*{PIP}"):
        find_backend(backends.XLLAMACPP)


def test_find_backend_wheel_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", unknown)
    assert find_backend("xllamacpp").version is None


def test_server_manager_backend_from_environment(
    llama_server_binary: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_settings(monkeypatch)
    monkeypatch.setenv("LLAMATEL_LLAMA_SERVER", str(llama_server_binary))
    with ServerManager().start_server(tiny_model, port=0) as server:
        server.wait_until_ready(60)
        assert server.backend is not None
        assert (server.backend.name, server.info.backend) == ("llama-server", "llama-server")
        assert complete(server.base_url) == 200


def test_server_manager_backend_not_found(tiny_model: Path) -> None:
    server = ServerManager(backend="/nowhere/llama-server")
    with pytest.raises(BackendNotFound, match="/nowhere/llama-server"):
        server.start_server(tiny_model)
    assert (server.backend, server.snapshot(), server.stop_server()) == (None, None, None)
