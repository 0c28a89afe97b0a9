"""What a person calls a model: a file, a folder, an address, a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llamatel.errors import GGUFError, ModelUnreachable, UsageError
from llamatel.gguf.model_choices import MAX_CONFIG, Choices, Model, ModelConfig, choices_among, parse_config
from llamatel.gguf.split_files import parse_gguf_header, read_model
from llamatel.models import tiny_model

_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^:/]+))?(?:/(?P<file>.+)|:(?P<quant>[\w.-]+))?", re.DOTALL
)
_HUB_PAGE = re.compile(rf"/(?P<repo>{_NAME}/{_NAME})/(?:blob|resolve)/(?P<revision>[^/]+)/(?P<file>.+)")


def read_reference(reference: str, *, progress: Callable[[int], None] | None = None, as_server: bool = False) -> Model:
    """The header, tensors included, or the configuration that ``reference`` names; or what there is to choose from.

    A file (``.gguf``, ``config.json``) or folder; ``tiny``, the model that llamatel ships; ``org/repo``,
    ``org/repo:Q4_K_M``, ``hf://org/repo/file.gguf``, with ``@revision`` behind the repository; ``https://.../x.gguf``.
    ``progress`` is called with the bytes of each step that arrive over the network. ``as_server``: of several models in
    a repository the one that ``llama-server -hf`` takes. Raises GGUFError, and UsageError for what is none of these.
    """
    if reference.startswith(("http://", "https://")):
        return _address(reference, progress)
    if reference.startswith("hf://"):
        return _hub(reference.removeprefix("hf://"), reference, progress, as_server)
    path = Path(reference).expanduser()
    if reference == "tiny" and not path.exists():
        path = tiny_model()
    if reference and path.is_dir():
        return _folder(path)
    if path.suffix == ".json":
        return ModelConfig(str(path), parse_config(_read_text(path), str(path)))
    # Two plain words may name a repository, but a file that is there, or must be one by its name, comes first.
    if (reference and path.exists()) or reference.startswith((".", "/", "~")) or reference.endswith(".gguf"):
        return parse_gguf_header(path, read_tensors=True)
    try:
        return _hub(reference, reference, progress, as_server)
    except ModelUnreachable as error:
        raise ModelUnreachable(f"there is no such file here; on the Hub: {error.message}", path=error.path) from error


def _address(url: str, progress: Callable[[int], None] | None) -> Model:
    from llamatel.gguf.http_source import UrlSource

    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{url!r} is no address: {error}") from error
    page = _HUB_PAGE.fullmatch(unquote(parts.path))
    if page is not None:
        from llamatel.gguf.hub import Hub

        hub = Hub(progress=progress)
        if url.startswith(hub.endpoint + "/"):
            return hub.read(page["repo"], page["file"], revision=page["revision"])
    return read_model(url, lambda name: UrlSource(name, progress=progress), read_tensors=True)


def _hub(name: str, reference: str, progress: Callable[[int], None] | None, as_server: bool) -> Model:
    from llamatel.gguf.hub import Hub

    found = _HUB.fullmatch(name)
    if found is None:
        raise UsageError(
            f"{reference!r} names no model: a file, org/repo, org/repo:Q4_K_M, hf://org/repo/file.gguf, an address, "
            "or tiny"
        )
    hub = Hub(progress=progress)
    if found["file"] is not None:
        return hub.read(found["repo"], found["file"], revision=found["revision"])
    return hub.choose(found["repo"], quant=found["quant"], revision=found["revision"], as_server=as_server)


def _folder(folder: Path) -> Model:
    choices = choices_among([(path.name, path.stat().st_size) for path in folder.glob("*.gguf")])
    if len(choices) == 1:
        return parse_gguf_header(folder / choices[0].path, read_tensors=True)
    if choices:
        return Choices(str(folder), choices, remote=False)
    if (folder / "config.json").is_file():
        return ModelConfig(str(folder), parse_config(_read_text(folder / "config.json"), str(folder / "config.json")))
    raise GGUFError("a folder with neither a GGUF file nor a config.json", path=str(folder))


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_CONFIG + 1)
    except UnicodeDecodeError as error:
        raise GGUFError("not UTF-8", path=str(path)) from error
    except OSError as error:
        raise GGUFError(f"cannot be opened: {error.strerror or error}", path=str(path)) from error
