"""The file of a repository that a tag names, equal to the real llama-server's ``-hf``, on a stand-in Hub."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from llamatel.cli.plan import with_projector
from llamatel.errors import GGUFError
from llamatel.flags.parse import parse_server_flags
from llamatel.gguf import GGUFHeader
from llamatel.gguf.hub import Hub
from llamatel.gguf.hub_choice import is_model, named_by, of_server, one_model
from llamatel.gguf.model_choices import choices_among
from tests.hub_server import HubServer, Repository, serve_hub
from tests.tiny_gguf import write_tiny_model

REPOSITORIES: dict[str, tuple[str, ...]] = {
    # mradermacher: a projector's word in the middle of a name (wild.md A9).
    "mradermacher": ("Model.Q4_K_M.gguf", "Model.Q8_0.gguf", "Model.mmproj-Q8_0.gguf", "Model.mmproj-f16.gguf"),
    "projector": ("mmproj-BF16.gguf", "mmproj-Q8_0.gguf", "x-BF16.gguf", "x-Q8_0.gguf"),
    "drafts": ("MTP/mtp-x-Q8_0.gguf", "eagle3-x-Q8_0.gguf", "dflash-x-Q8_0.gguf", "x-Q8_0.gguf", "x-mtp-Q4_0.gguf"),
    "matrix": ("imatrix-x-Q8_0.gguf", "x.imatrix.gguf", "x.i1-IQ4_XS.gguf", "x.i1-Q4_K_M.gguf"),
    # Tiers of quality: unsloth, bartowski.
    "tiers": ("x-IQ4_XS.gguf", "x-Q4_K_M.gguf", "x-Q4_K_S.gguf", "x-UD-IQ1_M.gguf", "x-UD-Q4_K_XL.gguf"),
    "same_tier": ("x-Q4_K_M.gguf", "x-UD-Q4_K_M.gguf"),
    "case": ("model-bf16.gguf", "model-q4_0.gguf", "model-q8_0.gguf"),
    "middle": ("gemma-Q4_0-it-qat.gguf", "gemma-Q8_0-it-qat.gguf"),
    # Folders and split models.
    "folders": (
        "BF16/x-BF16-00001-of-00002.gguf",
        "BF16/x-BF16-00002-of-00002.gguf",
        "UD-Q4_K_XL/x-UD-Q4_K_XL-00001-of-00002.gguf",
        "UD-Q4_K_XL/x-UD-Q4_K_XL-00002-of-00002.gguf",
        "x-Q8_0.gguf",
    ),
    "unnamed_folders": ("Q2_K/model-00001-of-00002.gguf", "Q2_K/model-00002-of-00002.gguf", "Q8_0.gguf"),
    "one": ("whatever.gguf",),
    "several": ("a-Q8_0.gguf", "b-Q8_0.gguf", "c-F16.gguf"),
}
CASES = [
    *(("mradermacher", tag) for tag in ("Q8_0", "Q4_K_M", None, "F16")),
    *(("projector", tag) for tag in ("Q8_0", "BF16", None)),
    *(("drafts", tag) for tag in ("Q8_0", "Q4_0", None)),
    *(("matrix", tag) for tag in ("IQ4_XS", "Q4_K_M", None, "i1-IQ4_XS")),
    *(("tiers", tag) for tag in ("Q4_K_XL", "UD-Q4_K_XL", "IQ4_XS", "Q4_K", "IQ1_M", None)),
    *(("same_tier", tag) for tag in ("Q4_K_M", "UD-Q4_K_M")),
    *(("case", tag) for tag in ("Q8_0", "bf16", "q4_0", None)),
    *(("middle", tag) for tag in ("Q4_0", "Q8_0", "it", None)),
    *(("folders", tag) for tag in ("BF16", "UD-Q4_K_XL", "Q4_K_XL", None)),
    *(("unnamed_folders", tag) for tag in ("Q2_K", "Q8_0", None)),
    *(("one", tag) for tag in (None, "Q4_K_M")),
    *(("several", tag) for tag in ("Q8_0", "F16", None)),
]


def _ours(name: str, tag: str | None) -> str | None:
    files = REPOSITORIES[name]
    in_order = sorted(choices_among([(path, 1) for path in files]), key=lambda choice: files.index(choice.path))
    found = of_server(in_order) if tag is None else next(iter(named_by(tag, in_order)), None)
    return None if found is None else found.path


def _requested(binary: Path, hub: HubServer, folder: Path, *words: str) -> list[str]:
    """The files that llama-server requests; it exits when it cannot load them."""
    hub.requests.clear()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LLAMA_"))}
    environment |= {"HF_ENDPOINT": f"{hub.endpoint}/", "HF_HOME": str(folder), "LLAMA_CACHE": str(folder)}
    command = [str(binary), *words, "--host", "127.0.0.1", "--port", "0"]
    subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    paths = [
        re.fullmatch(r"/org/[^/]+/resolve/[0-9a-f]+/(.+)", path) for host, path, *_ in hub.requests if host == "hub"
    ]
    return [found[1] for found in paths if found is not None]


def _of_binary(binary: Path, hub: HubServer, reference: str, folder: Path) -> str | None:
    return next(iter(_requested(binary, hub, folder, "-hf", reference, "--no-mmproj")), None)


@pytest.mark.parametrize(("name", "tag"), CASES)
def test_hub_choice_of_tag_equals_llama_server(
    name: str, tag: str | None, llama_server_binary: Path, tmp_path: Path
) -> None:
    with serve_hub({f"org/{name}": Repository(dict.fromkeys(REPOSITORIES[name], b"no model"))}) as hub:
        reference = f"org/{name}" if tag is None else f"org/{name}:{tag}"
        assert _of_binary(llama_server_binary, hub, reference, tmp_path) == _ours(name, tag)


def test_hub_choice_ignores_other_files() -> None:
    assert is_model("a/Model.Q8_0.gguf")
    for path in (
        "Model.mmproj-Q8_0.gguf",
        "a/mtp-x.gguf",
        "x.imatrix.gguf",
        "eagle3-x.gguf",
        "x.safetensors",
        "mmproj",
    ):
        assert not is_model(path)
    assert is_model("mmproj/x-Q8_0.gguf")  # the folder's name is ignored


@pytest.mark.parametrize(
    ("paths", "same"),
    [
        (("x-Q4_K_M.gguf", "x-UD-Q4_K_M.gguf"), True),
        (("x-Q8_0.gguf", "q8_0/X-q8_0.gguf"), True),
        (("a-Q8_0.gguf", "b-Q8_0.gguf"), False),
    ],
)
def test_hub_choice_of_one_model(paths: tuple[str, ...], same: bool) -> None:
    assert one_model(choices_among([(path, 1) for path in paths])) is same


def test_hub_choice_ambiguous_tag_lists_references(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_hub({"org/several": Repository(dict.fromkeys(REPOSITORIES["several"], b"no model"))}) as hub:
        with pytest.raises(GGUFError) as raised:
            Hub(hub.endpoint).choose("org/several", quant="Q8_0")
        assert "hf://org/several/a-Q8_0.gguf, hf://org/several/b-Q8_0.gguf" in str(raised.value)
        with pytest.raises(GGUFError, match="a-Q8_0"):  # the file is found, but is not a GGUF
            Hub(hub.endpoint).choose("org/several", quant="Q8_0", as_server=True)


VISION = ("a/x-Q8_0.gguf", "a/mmproj-x.gguf", "b/c/y-Q8_0.gguf", "b/mmproj-y.gguf", "d/mmproj-z.gguf", "z-Q8_0.gguf")


@pytest.mark.parametrize(
    ("words", "model", "projector"),
    [
        ("-hf org/m", "a/x-Q8_0.gguf", "a/mmproj-x.gguf"),
        ("-hf org/m -hff b/c/y-Q8_0.gguf", "b/c/y-Q8_0.gguf", "b/mmproj-y.gguf"),
        ("-hf org/m:Q8_0 -hff z-Q8_0.gguf", "z-Q8_0.gguf", None),
        ("-hf org/m -hff a/x-Q8_0.gguf --no-mmproj", "a/x-Q8_0.gguf", None),
        ("-hf org/m -hff none.gguf", None, None),
    ],
)
def test_hf_file_and_projector_equal_llama_server(
    words: str, model: str | None, projector: str | None, llama_server_binary: Path, tmp_path: Path
) -> None:
    with serve_hub({"org/m": Repository({path: path.encode() for path in VISION})}) as hub:
        requested = _requested(llama_server_binary, hub, tmp_path / "cache", *words.split())
    assert {path for path in requested if "mmproj" not in path} == ({model} if model else set())
    assert {path for path in requested if "mmproj" in path} == ({projector} if projector else set())
    assert _of_plan(words, tmp_path) == (model, projector)


def _of_plan(words: str, folder: Path) -> tuple[str | None, str | None]:
    """The model that a plan is for, and the projector that it does not count."""
    settings = parse_server_flags(words.split(), environ={})
    whole = write_tiny_model(folder / "tiny.gguf").read_bytes()
    with serve_hub({"org/m": Repository(dict.fromkeys(VISION, whole))}) as hub:
        try:
            header = Hub(hub.endpoint).choose("org/m", as_server=True, hf_file=settings.hf_file)
        except GGUFError as error:
            return ("another error" if "file 'none.gguf' not found in repository" not in str(error) else None), None
    assert isinstance(header, GGUFHeader)
    counted = with_projector(settings, header).not_counted
    assert counted == (("the projector of -hf (off: --no-mmproj)",) if counted else ())
    return header.path.removeprefix("org/m/"), header.projector if counted else None
