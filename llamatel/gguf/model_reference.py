"""Resolves a model reference: a file, a folder, a URL, a repository of the Hugging Face Hub, a model of Ollama's."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llamatel.errors import GGUFError, ModelUnreachable, UsageError
from llamatel.gguf.hub_choice import is_model
from llamatel.gguf.model_choices import MAX_CONFIG, Choices, Model, ModelConfig, choices_among, parse_config
from llamatel.gguf.split_files import parse_gguf_header, read_model
from llamatel.inputs.text_file import user_path
from llamatel.models import tiny_model

_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^:/]+))?(?:/(?P<file>.+)|:(?P<quant>[\w.-]+))?", re.DOTALL
)
_HUB_PAGE = re.compile(rf"/(?P<repo>{_NAME}/{_NAME})/(?:blob|resolve)/(?P<revision>[^/]+)/(?P<file>.+)")
_MAX_FILES = 100_000
"""Most files of a folder that are considered."""

Progress = Callable[[int], None]


def read_reference(
    reference: str, *, progress: Progress | None = None, as_server: bool = False, hf_file: str | None = None
) -> Model:
    """The header, tensors included, or the configuration that ``reference`` names; or the models to choose from.

    A file (``.gguf``, ``config.json``) or folder; ``tiny``, the model that llamatel ships; ``org/repo``,
    ``org/repo:Q4_K_M``, ``hf://org/repo/file.gguf``, with ``@revision`` after the repository; ``https://.../x.gguf``;
    ``ollama://model:tag``. ``progress`` is called with the bytes of each step that arrive over the network.
    ``as_server``: of several models in a repository the one that ``llama-server -hf`` uses, with ``-hff`` the file
    ``hf_file``. Raises GGUFError, and UsageError for anything else.
    """
    if reference.startswith(("http://", "https://")):
        return _url(reference, progress)
    if reference.startswith("hf://"):
        return _hub(reference.removeprefix("hf://"), reference, progress, as_server, hf_file)
    if reference.startswith("ollama://"):
        from llamatel.gguf.ollama_store import blob_of

        return parse_gguf_header(blob_of(reference.removeprefix("ollama://")), read_tensors=True)
    path, is_there, is_folder = _local(reference)
    if is_folder:
        return _folder(path)
    if path.suffix == ".json":
        return ModelConfig(str(path), parse_config(_read_config(path), str(path)))
    # Two plain words may name a repository, but an existing file, or a name that can only be a file, takes precedence.
    if is_there or reference.startswith((".", "/", "~")) or reference.endswith((".gguf", ".safetensors")):
        return parse_gguf_header(path, read_tensors=True)
    try:
        return _hub(reference, reference, progress, as_server, hf_file)
    except ModelUnreachable as error:
        raise ModelUnreachable(f"there is no such file here; on the Hub: {error.message}", path=error.path) from error


def _local(reference: str) -> tuple[Path, bool, bool]:
    """The path of a reference, whether it exists, and whether it is a folder."""
    try:
        path = user_path(reference)
        if reference == "tiny" and not path.exists():
            path = tiny_model()
        return path, bool(reference) and path.exists(), bool(reference) and path.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long a name, no such user's home folder, a NUL
        return Path(reference), False, False


def _url(url: str, progress: Progress | None) -> Model:
    from llamatel.gguf.http_source import UrlSource

    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises ValueError where it is none
    except ValueError:  # its text quotes a part of the URL, which may be a password
        raise UsageError(f"{url!r} is not a URL: write it like https://host/model.gguf") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError("a URL with a user or a password is not supported")
    page = _HUB_PAGE.fullmatch(unquote(parts.path))
    if page is not None:
        from llamatel.gguf.hub import Hub

        hub = Hub(progress=progress)
        if url.startswith(hub.endpoint + "/"):
            return hub.read(page["repo"], page["file"], revision=page["revision"])
    return read_model(url, lambda name: UrlSource(name, progress=progress), read_tensors=True)


def _hub(name: str, reference: str, progress: Progress | None, as_server: bool, hf_file: str | None) -> Model:
    from llamatel.gguf.hub import Hub

    found = _HUB.fullmatch(name)
    if found is None:
        raise UsageError(
            f"{reference!r:.300} names no model: a file, org/repo, org/repo:Q4_K_M, hf://org/repo/file.gguf, a URL, "
            "ollama://model:tag, or tiny"
        )
    hub = Hub(progress=progress)
    if found["file"] is not None:
        return hub.read(found["repo"], found["file"], revision=found["revision"])
    return hub.choose(
        found["repo"], quant=found["quant"], revision=found["revision"], as_server=as_server, hf_file=hf_file
    )


def _folder(folder: Path) -> Model:
    files: list[tuple[str, int | None]] = []
    try:
        for path in folder.iterdir():
            if path.suffix == ".gguf" and len(files) < _MAX_FILES:
                files.append((path.name, _size(path)))
    except OSError as error:
        raise GGUFError(f"cannot be read: {error.strerror or error}", path=str(folder)) from error
    choices = choices_among(files)
    choices = tuple(each for each in choices if is_model(each.path)) or choices  # next to a projector, a draft model
    if len(choices) == 1:
        return parse_gguf_header(folder / choices[0].path, read_tensors=True)
    if choices:
        return Choices(str(folder), choices, remote=False)
    config = folder / "config.json"
    if _size(config) is not None:
        return ModelConfig(str(folder), parse_config(_read_config(config), str(config)))
    parts = f" (parts of a split model without the first: {files[0][0]})" if files else ""
    raise GGUFError(f"a folder with neither a GGUF file nor a config.json{parts}", path=str(folder))


def _size(path: Path) -> int | None:
    """A file's bytes; None where it does not exist, or is a loop of links."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _read_config(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe without a writer would block
            raise GGUFError("not a file", path=str(path))
        with path.open("rb") as file:
            return file.read(MAX_CONFIG + 1)
    except OSError as error:
        raise GGUFError(f"cannot be opened: {error.strerror or error}", path=str(path)) from error
