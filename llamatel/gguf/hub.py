"""Models in repositories of the Hugging Face Hub, through huggingface_hub: its token, its cache, its HF_ENDPOINT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatel.errors import GGUFError, ModelUnreachable
from llamatel.gguf.byte_source import ByteSource, FileSource
from llamatel.gguf.header import GGUFHeader
from llamatel.gguf.http_source import UrlSource
from llamatel.gguf.model_choices import MAX_CONFIG, Choice, Choices, Model, ModelConfig, choices_among, parse_config
from llamatel.gguf.split_files import read_model

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_TIMEOUT = 20.0
_LOGIN = "log in (hf auth login) or set HF_TOKEN"


class Hub:
    """One Hub: HF_ENDPOINT's, or ``endpoint``. What a repository does not give is a GGUFError in plain words."""

    def __init__(self, endpoint: str | None = None, *, progress: Callable[[int], None] | None = None) -> None:
        from huggingface_hub import constants

        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._progress = progress

    def choose(self, repo: str, *, quant: str | None = None, revision: str | None = None) -> Model:
        """The repository's GGUF of that quantisation, its only one, or what there is; else its configuration."""
        info = self._info(repo, revision)
        siblings = info.siblings or []
        found = choices_among([(each.rfilename, each.size) for each in siblings])
        name = f"{repo}@{revision}" if revision else repo
        if quant is not None:
            return self.read(repo, _of_quant(name, found, quant).path, revision=revision)
        if len(found) == 1:
            return self.read(repo, found[0].path, revision=revision)
        if found:
            return Choices(name, found, remote=True)
        if any(each.rfilename == "config.json" for each in siblings):
            return self._config(repo, name, revision, info)
        raise GGUFError("the repository has neither a GGUF file nor a config.json", path=name)

    def read(self, repo: str, file: str, *, revision: str | None = None) -> GGUFHeader | ModelConfig:
        """A file's header, with its tensors; from huggingface_hub's cache if it is there. Or a ``config.json``."""
        if file.endswith(".json"):
            with self._open(repo, file, revision) as source:
                text = source.read(0, min(source.size, MAX_CONFIG + 1)).decode("utf-8", "replace")
            return ModelConfig(f"{repo}/{file}", parse_config(text, f"{repo}/{file}"))
        return read_model(file, lambda name: self._open(repo, name, revision), read_tensors=True)

    def _open(self, repo: str, file: str, revision: str | None) -> AbstractContextManager[ByteSource]:
        from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

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
            headers=build_hf_headers(library_name="llamatel"),
            explain=lambda status, headers: self._words(repo, file, revision, status, headers),
            progress=self._progress,
        )

    def _info(self, repo: str, revision: str | None) -> ModelInfo:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        # Its HTTP client changed twice; what the errors of each have in common is what HfHubHTTPError is made of.
        network: Any = (OSError, *HfHubHTTPError.__bases__)
        api = HfApi(endpoint=self.endpoint, library_name="llamatel")
        try:
            return api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
        except HFValidationError as error:
            raise GGUFError(_one_line(error), path=repo) from error
        except HfHubHTTPError as error:
            answer = error.response
            words = self._words(repo, None, revision, answer.status_code, answer.headers)
            raise GGUFError(words or f"the Hub answered {answer.status_code}", path=repo) from error
        except network as error:
            raise ModelUnreachable(f"the Hub cannot be asked: {_one_line(error)}", path=repo) from error
        except (ValueError, TypeError, KeyError) as error:  # no JSON, or not what the Hub's looks like
            raise GGUFError(f"{self.endpoint} does not answer as a Hub", path=repo) from error

    def _config(self, repo: str, name: str, revision: str | None, info: ModelInfo) -> ModelConfig:
        found = self.read(repo, "config.json", revision=revision)
        config = found.config if isinstance(found, ModelConfig) else {}
        return ModelConfig(name, config, info.safetensors.total if info.safetensors is not None else None)

    def _words(
        self, repo: str, file: str | None, revision: str | None, status: int, headers: Mapping[str, str]
    ) -> str | None:
        """What an answer means. The codes are the Hub's (``X-Error-Code``)."""
        from huggingface_hub import get_token

        code = headers.get("X-Error-Code")
        if code == "GatedRepo":
            page = f"{self.endpoint}/{repo}"
            if get_token():
                return f"this repository is gated, and your account has no access: ask for it at {page}"
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
            return f"the Hub gives no access ({headers.get('X-Error-Message') or 403})"
        if status == 429:
            return f"the Hub asks us to slow down; try again later, or {_LOGIN}"
        return None


def _of_quant(name: str, choices: tuple[Choice, ...], quant: str) -> Choice:
    """The choice that a quantisation names. A projector or a draft beside the model has its own ways of being named."""
    models = [each for each in choices if not Path(each.path).name.lower().startswith(("mmproj", "mtp-", "imatrix"))]
    wanted = quant.upper()
    exact = [each for each in models if each.quant == wanted] or [
        each for each in models if each.quant == f"UD-{wanted}"
    ]  # fmt: skip
    if not exact:
        there = ", ".join(dict.fromkeys(each.quant for each in models if each.quant)) or "none that names say"
        raise GGUFError(f"the repository has no {quant}; it has: {there}", path=name)
    if len(exact) > 1:
        paths = ", ".join(f"hf://{name}/{each.path}" for each in exact)
        raise GGUFError(f"{quant} is more than one file: {paths}", path=name)
    return exact[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
