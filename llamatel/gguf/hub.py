"""Models in repositories of the Hugging Face Hub: huggingface_hub's token, cache and HF_ENDPOINT, our own requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llamatel.errors import GGUFError, HttpError, ModelUnreachable, UsageError
from llamatel.gguf.byte_source import ByteSource, FileSource
from llamatel.gguf.header import GGUFHeader
from llamatel.gguf.http_source import UrlSource
from llamatel.gguf.hub_choice import is_model, named_by, of_server, one_model, projector_of
from llamatel.gguf.model_choices import (
    MAX_CONFIG,
    Choice,
    Choices,
    Model,
    ModelConfig,
    choices_among,
    listed,
    parse_config,
)
from llamatel.gguf.split_files import read_model
from llamatel.inputs.address import parse_address
from llamatel.inputs.documents import InvalidDocument, count, parse_json
from llamatel.inputs.http import HttpClient, Response

_TIMEOUT_S = 20.0
_REDIRECTS = 3
_LARGEST = 32 << 20
"""Bytes of a repository's description; one of 100,000 files has some 25 MiB."""
_MOST_VALUES = 1 << 21
_LOGIN = "log in (hf auth login) or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository's files with their sizes, in the Hub's order, and its parameters where the Hub knows them."""

    files: tuple[tuple[str, int | None], ...]
    parameters: int | None


class Hub:
    """One Hub: HF_ENDPOINT's, or ``endpoint``. Missing repositories and files raise GGUFError, in one line."""

    def __init__(self, endpoint: str | None = None, *, progress: Callable[[int], None] | None = None) -> None:
        from huggingface_hub import constants

        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        try:
            parse_address(self.endpoint)
        except UsageError as error:
            raise GGUFError(f"HF_ENDPOINT is not the address of a Hub: {error}") from None
        self._progress = progress

    def choose(
        self,
        repo: str,
        *,
        quant: str | None = None,
        revision: str | None = None,
        as_server: bool = False,
        hf_file: str | None = None,
    ) -> Model:
        """The repository's model that ``quant`` names, its only one, or the choices; else its configuration.

        ``as_server``: always the one that ``llama-server -hf`` uses, with ``-hff`` the file ``hf_file``. Otherwise a
        name that matches several models is an error that lists them.
        """
        repository = self._repository(repo, revision)
        found = choices_among(repository.files)
        name = f"{repo}@{revision}" if revision else repo
        models = [each for each in found if is_model(each.path)] or list(found)
        if as_server or quant is not None:
            path = hf_file or resolve(name, repository, found, quant, as_server).path
            paths = [each for each, _ in repository.files]
            if hf_file and hf_file not in paths:  # in llama-server's words
                raise GGUFError(f"file '{hf_file}' not found in repository", path=name)
            header = self.read(repo, path, revision=revision)
            if as_server and isinstance(header, GGUFHeader):
                return replace(header, projector=projector_of(path, paths))
            return header
        if len(models) == 1:
            return self.read(repo, models[0].path, revision=revision)
        if found:
            return Choices(name, found, remote=True)
        if any(path == "config.json" for path, _ in repository.files):
            config = self.read(repo, "config.json", revision=revision)
            values = config.config if isinstance(config, ModelConfig) else {}
            return ModelConfig(name, values, repository.parameters)
        raise GGUFError("the repository has neither a GGUF file nor a config.json", path=name)

    def read(self, repo: str, file: str, *, revision: str | None = None) -> GGUFHeader | ModelConfig:
        """A file's header, with its tensors; from huggingface_hub's cache if it is there. Or a ``config.json``."""
        if file.endswith(".json"):
            with self._open(repo, file, revision) as source:
                text = source.read(0, min(source.size, MAX_CONFIG + 1))[: MAX_CONFIG + 1]
            return ModelConfig(f"{repo}/{file}", parse_config(text, f"{repo}/{file}"))
        return read_model(file, lambda name: self._open(repo, name, revision), read_tensors=True)

    def _open(self, repo: str, file: str, revision: str | None) -> AbstractContextManager[ByteSource]:
        from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(repo, file, revision=revision)
            url = hf_hub_url(repo, file, revision=revision, endpoint=self.endpoint)
        except HFValidationError as error:
            raise GGUFError(_one_line(error), path=repo) from error
        if isinstance(cached, str) and Path(cached).is_file():
            return FileSource(cached)
        if constants.HF_HUB_OFFLINE:
            raise GGUFError("HF_HUB_OFFLINE is set, and the file is not in the cache", path=f"{repo}/{file}")
        return UrlSource(
            url,
            name=f"{repo}/{file}",
            headers=_headers(),
            explain=lambda status, headers: self._words(repo, file, revision, status, headers),
            progress=self._progress,
        )

    def _repository(self, repo: str, revision: str | None) -> Repository:
        from huggingface_hub import constants
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise GGUFError(_one_line(error), path=repo) from error
        if constants.HF_HUB_OFFLINE:
            raise GGUFError("HF_HUB_OFFLINE is set: name the file, hf://org/repo/file.gguf", path=repo)
        path = f"/api/models/{repo}" + (f"/revision/{quote(revision, safe='')}" if revision else "") + "?blobs=true"
        try:
            client = HttpClient(self.endpoint, use_proxy=True, kept=0)
            response = client.request(
                path, total_s=_TIMEOUT_S, headers=_headers(), largest=_LARGEST,
                redirects=_REDIRECTS,
            )  # fmt: skip
        except HttpError as error:
            if error.kind == "too_large":
                raise GGUFError("it lists too many files: name one, hf://org/repo/file.gguf", path=repo) from error
            raise ModelUnreachable(f"the Hub cannot be reached: {error}", path=repo) from error
        if response.status != 200:
            words = self._words(repo, None, revision, response.status, response.headers)
            raise GGUFError(words or f"the Hub answered {response.status}", path=repo)
        return self.described(repo, response)

    def described(self, repo: str, response: Response) -> Repository:
        """The repository in the Hub's description. Raises GGUFError."""
        try:
            document = parse_json(response.data, largest=_LARGEST, most_values=_MOST_VALUES)
        except InvalidDocument as error:
            raise GGUFError(f"{self.endpoint} is not a Hub: {error}", path=repo) from error
        siblings = document.get("siblings") if isinstance(document, dict) else None
        if not isinstance(siblings, list):
            raise GGUFError(f"{self.endpoint} is not a Hub: its response lists no files", path=repo)
        files = [(each["rfilename"], count(each.get("size"))) for each in siblings if _is_file(each)]
        safetensors = document.get("safetensors")
        parameters = count(safetensors.get("total")) if isinstance(safetensors, dict) else None
        return Repository(tuple(files), parameters)

    def _words(
        self, repo: str, file: str | None, revision: str | None, status: int, headers: Mapping[str, str]
    ) -> str | None:
        """Explains a response. The codes are the Hub's (``X-Error-Code``)."""
        from huggingface_hub import get_token

        code = headers.get("X-Error-Code")
        if code == "GatedRepo":
            page = f"{self.endpoint}/{repo}"
            if get_token():
                return f"this repository is gated, and your account has no access: request it at {page}"
            return f"this repository is gated: accept its conditions at {page}, then {_LOGIN}"
        if code == "RevisionNotFound":
            return f"the repository has no revision {revision!r}"
        if code == "EntryNotFound":
            return f"the repository has no file {file!r}"
        if code == "RepoNotFound" or (code is None and status in (401, 404)):
            if get_token():
                return "there is no such repository, or your account may not see it"
            return f"there is no such repository, or it is private; for a private one {_LOGIN}"
        if status == 403:
            return "the Hub denies access (403)"
        if status == 429:
            return f"the Hub limits the rate of requests (429): try again later, or {_LOGIN}"
        return None


def _headers() -> dict[str, str]:
    """The token. huggingface_hub's own function requests a list of agents from the Hub, without a total timeout."""
    from huggingface_hub import constants, get_token

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _is_file(sibling: Any) -> bool:
    """Whether an entry of the Hub's list is a file, with a name that can be one."""
    name = sibling.get("rfilename") if isinstance(sibling, dict) else None
    return isinstance(name, str) and 0 < len(name) <= 1024 and name.isprintable() and ".." not in name.split("/")


def resolve(
    name: str, repository: Repository, choices: tuple[Choice, ...], quant: str | None, as_server: bool
) -> Choice:
    """The model that llama-server uses; if it is one of several different models, an error lists them."""
    order = {path: number for number, (path, _) in enumerate(repository.files)}
    in_order = sorted(choices, key=lambda choice: order[choice.path])
    if as_server and "preset.ini" in order:
        raise GGUFError("the repository has a preset.ini, which llama-server reads in place of a model", path=name)
    found = of_server(in_order) if quant is None else next(iter(named_by(quant, in_order)), None)
    if found is None:
        raise _none_of(name, choices, quant or "model")
    same = [] if as_server or quant is None else named_by(quant, choices)
    if not one_model(same):
        paths = listed([f"hf://{name}/{each.path}" for each in same])
        taken = f"llama-server -hf takes hf://{name}/{found.path}"
        raise GGUFError(f"{quant} is more than one file: {paths}; {taken}", path=name)
    return found


def _none_of(name: str, choices: tuple[Choice, ...], quant: str) -> GGUFError:
    names = list(dict.fromkeys(each.quant for each in choices if each.quant and is_model(each.path)))
    there = listed(names) or "no quantization in a file's name"
    return GGUFError(f"the repository has no {quant}; it has: {there}", path=name)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
