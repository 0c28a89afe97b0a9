"""Headers over the network: fetched ranges, recipients of the token, error messages."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from llamatel.errors import GGUFError, ModelUnreachable, UsageError
from llamatel.gguf import GGUFHeader, Metadata
from llamatel.gguf.http_source import FIRST_CHUNK, LAST_CHUNK, UrlSource
from llamatel.gguf.hub import Hub
from llamatel.gguf.model_choices import Choices, Model, ModelConfig, quant_of
from llamatel.gguf.model_reference import read_reference
from tests.gguf_files import ARRAY, STRING, U32, Writer, sample
from tests.hub_server import TOKEN, HubServer, Repository, serve_hub

_CONFIG = {"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8}


@lru_cache
def _large(words: int = 100_000) -> bytes:
    """A header of some 2 MB, and 16 MB of data after it."""
    write = Writer()
    tokens = tuple(f"word {number}" for number in range(words))
    keys = [
        write.key("general.architecture", STRING, "llama"),
        write.key("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        write.key("tokenizer.ggml.scores", ARRAY, (6, (0.0,) * words)),
        write.key("llama.block_count", U32, 7),
    ]
    return write.file(keys, [write.tensor("t", (1 << 20, 4), 0, 0)], data=1 << 24)


def _shards() -> dict[str, bytes]:
    write = Writer()
    files = {}
    for number in range(2):
        keys = [write.key("general.architecture", STRING, "llama")] if number == 0 else []
        keys += [write.key("split.no", 2, number), write.key("split.count", 2, 2)]
        name = f"Q8_0/big-Q8_0-{number + 1:05d}-of-00002.gguf"
        files[name] = write.file(keys, [write.tensor(f"t{number}", (32,), 0, 0)], data=128)
    return files


@pytest.fixture
def _files() -> dict[str, Repository]:
    small = sample()
    return {
        "org/many": Repository(
            {
                "README.md": b"hello",
                "model-Q4_K_M.gguf": small,
                "model-Q8_0.gguf": small + bytes(100),
                "UD-Q2_K_XL/model-UD-Q2_K_XL.gguf": small,
                "mmproj-F16.gguf": small,
                **_shards(),
            }
        ),
        "org/one": Repository({"model.gguf": _large()}),
        "org/config": Repository({"config.json": json.dumps(_CONFIG).encode()}, parameters=1_235_814_400),
        "org/nothing": Repository({"README.md": b"hello"}),
        "org/gated": Repository({"model.gguf": small}, gated=True),
        "org/private": Repository({"model.gguf": small}, private=True),
        "org/broken": Repository({"model.gguf": small[:200], "empty.gguf": b"", "config.json": b"[1]"}),
    }


@pytest.fixture
def hub(
    _files: dict[str, Repository], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[HubServer]:  # fmt: skip
    from huggingface_hub import constants

    with serve_hub(_files) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        address = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield server


def _header(model: Model) -> GGUFHeader:
    assert isinstance(model, GGUFHeader)
    return model


@pytest.mark.usefixtures("hub")
def test_hub_repository_lists_choices() -> None:
    model = read_reference("org/many")
    assert isinstance(model, Choices)
    assert [(each.path, each.quant, each.files) for each in model.choices] == [
        ("Q8_0/big-Q8_0-00001-of-00002.gguf", "Q8_0", 2),
        ("UD-Q2_K_XL/model-UD-Q2_K_XL.gguf", "UD-Q2_K_XL", 1),
        ("mmproj-F16.gguf", "F16", 1),
        ("model-Q4_K_M.gguf", "Q4_K_M", 1),
        ("model-Q8_0.gguf", "Q8_0", 1),
    ]
    assert [model.reference(each) for each in model.choices] == [
        "hf://org/many/Q8_0/big-Q8_0-00001-of-00002.gguf",
        "org/many:UD-Q2_K_XL",
        "hf://org/many/mmproj-F16.gguf",
        "org/many:Q4_K_M",
        "hf://org/many/model-Q8_0.gguf",
    ]
    assert model.choices[0].size == sum(map(len, _shards().values()))


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("reference", "file"),
    [
        ("org/many:Q4_K_M", "model-Q4_K_M.gguf"),
        ("org/many:q4_k_m", "model-Q4_K_M.gguf"),
        ("org/many@main:Q4_K_M", "model-Q4_K_M.gguf"),
        ("org/many:Q2_K_XL", "UD-Q2_K_XL/model-UD-Q2_K_XL.gguf"),
        ("hf://org/many/mmproj-F16.gguf", "mmproj-F16.gguf"),
        ("hf://org/many@main/model-Q8_0.gguf", "model-Q8_0.gguf"),
        ("hf://org/one", "model.gguf"),
        ("org/one", "model.gguf"),
    ],
)
def test_hub_reference_finds_its_file(reference: str, file: str) -> None:
    header = _header(read_reference(reference))
    assert header.path.endswith(f"/{file}")
    assert header.tensors


def test_hub_urls_of_files_and_pages(hub: HubServer) -> None:
    for address in (
        f"{hub.files}/org/many/model-Q4_K_M.gguf",
        f"{hub.endpoint}/org/many/resolve/main/model-Q4_K_M.gguf?download=true",
        f"{hub.endpoint}/org/many/blob/main/model-Q4_K_M.gguf",
    ):
        assert _header(read_reference(address)).metadata.block_count == 3


def test_url_source_fetches_header_and_one_chunk(hub: HubServer) -> None:
    steps: list[int] = []
    header = _header(read_reference("org/one", progress=steps.append))
    assert (header.metadata.block_count, header.n_params) == (7, 1 << 22)
    assert header.data_offset is not None
    assert FIRST_CHUNK < header.data_offset < len(hub.repositories["org/one"].files["model.gguf"]) // 4
    # Chunks double, so the last is no larger than all before it and the first.
    assert hub.sent_bytes() <= header.data_offset + min(LAST_CHUNK, header.data_offset + FIRST_CHUNK)
    assert sum(steps) == hub.sent_bytes()
    assert len([1 for host, *_ in hub.requests if host == "files"]) <= 5


def test_url_source_small_header_one_request(hub: HubServer) -> None:
    _header(read_reference("hf://org/many/model-Q4_K_M.gguf"))
    assert [(host, path) for host, path, *_ in hub.requests] == [
        ("hub", "/org/many/resolve/main/model-Q4_K_M.gguf"),
        ("files", "/org/many/model-Q4_K_M.gguf"),
    ]


def test_url_source_skipped_numbers_not_fetched(hub: HubServer) -> None:
    write = Writer()
    keys = [write.key("tokenizer.ggml.scores", ARRAY, (6, (0.0,) * 2_000_000)), write.key("a.last", U32, 5)]
    hub.repositories["org/scores"] = Repository({"x.gguf": write.file(keys)})
    assert _header(read_reference("org/scores")).metadata["a.last"] == 5
    assert hub.sent_bytes() <= 2 * FIRST_CHUNK


def test_split_model_read_from_all_files(hub: HubServer) -> None:
    header = _header(read_reference("hf://org/many/Q8_0/big-Q8_0-00002-of-00002.gguf"))
    assert [tensor.name for tensor in header.tensors or ()] == ["t0", "t1"]
    assert len(header.files) == 2
    header = _header(read_reference(f"{hub.files}/org/many/Q8_0/big-Q8_0-00001-of-00002.gguf?x=1"))
    assert header.tensor_count == 2


def test_hub_token_not_sent_to_redirect_target(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["org/gated"].files["model.gguf"] = _large()  # several ranges
    for reference in ("org/gated", "org/private", "hf://org/gated/model.gguf"):
        assert _header(read_reference(reference)).tensors
    seen = {(host, authorization) for host, _, _, authorization in hub.requests}
    assert seen == {("hub", f"Bearer {TOKEN}"), ("files", None)}


def test_hub_token_not_sent_to_other_hosts(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    read_reference(f"{hub.files}/org/many/model-Q4_K_M.gguf")
    assert [authorization for *_, authorization in hub.requests] == [None]


@pytest.mark.parametrize(
    ("reference", "token", "message"),
    [
        ("org/missing", None, "org/missing: there is no such repository, or it is private; for a private one log in"),
        ("org/missing", TOKEN, "org/missing: there is no such repository, or your account may not see it"),
        ("org/private", None, "or it is private"),
        ("org/gated", None, "this repository is gated: accept its conditions at {endpoint}/org/gated, then log in"),
        ("org/gated", "hf_other", "this repository is gated, and your account has no access: request it at {endpoint}"),
        ("hf://org/many/none.gguf", None, "the repository has no file 'none.gguf'"),
        ("hf://org/missing/none.gguf", None, "there is no such repository"),
        ("org/many@old", None, "the repository has no revision 'old'"),
        ("hf://org/many@old/model.gguf", None, "the repository has no revision 'old'"),
        ("org/many:Q3_K_S", None, "the repository has no Q3_K_S; it has: Q8_0, UD-Q2_K_XL, Q4_K_M"),
        ("org/many:Q8_0", None, "Q8_0 is more than one file: hf://org/many/Q8_0/big-Q8_0-00001-of-00002.gguf, hf"),
        ("org/nothing", None, "the repository has neither a GGUF file nor a config.json"),
        ("hf://org/broken/model.gguf", None, "org/broken/model.gguf: the file ends before it (200 bytes) (at byte "),
        ("hf://org/broken/empty.gguf", None, "org/broken/empty.gguf: the file ends before it (0 bytes)"),
        ("hf://org/broken/config.json", None, "org/broken/config.json: not a JSON object"),
        ("hf://org/bro--ken/model.gguf", None, "Cannot have -- or .. in repo_id"),
        ("org/bro--ken", None, "Cannot have -- or .. in repo_id"),
        ("{files}/org/many/none.gguf", None, "none.gguf: the server has no such file (404)"),
    ],
)
def test_hub_error_messages(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, reference: str, token: str | None, message: str
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(GGUFError) as caught:
        read_reference(reference.format(files=hub.files))
    assert message.format(endpoint=hub.endpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, "the Hub answered 500"),
        (403, "the Hub denies access (403)"),
        (429, "the Hub limits the rate of requests (429)"),
    ],
)
def test_hub_status_errors(hub: HubServer, status: int, message: str) -> None:
    hub.refuse = status
    with pytest.raises(GGUFError) as caught:
        read_reference("org/many")
    assert message in str(caught.value)


def test_url_source_refused_or_unreachable(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.refuse = 403
    with pytest.raises(GGUFError, match="the server denies access"):
        read_reference(f"{hub.files}/org/many/model-Q4_K_M.gguf")
    hub.refuse = 500
    with pytest.raises(GGUFError, match="the server answered 500"):
        read_reference(f"{hub.files}/org/many/model-Q4_K_M.gguf")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(GGUFError, match=r"cannot be fetched: .*refused"):
            read_reference(f"http://127.0.0.1:{port}/x.gguf")
        with pytest.raises(ModelUnreachable, match="the Hub cannot be reached: "):
            Hub(f"http://127.0.0.1:{port}").choose("org/many")
        with pytest.raises(ModelUnreachable, match="cannot be fetched: "):
            Hub(f"http://127.0.0.1:{port}").read("org/many", "x.gguf")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(ModelUnreachable, match="models/gone: there is no such file here; on the Hub: the Hub"):
            read_reference("models/gone")
    with pytest.raises(UsageError, match="is not a URL"):
        read_reference("http://[::1/x.gguf")
    with pytest.raises(GGUFError, match="cannot be fetched"):
        read_reference("http:///x.gguf")


def test_hub_endpoint_is_no_hub(hub: HubServer) -> None:
    with pytest.raises(GGUFError, match=r"there is no such repository|does not answer as a Hub"):
        Hub(hub.files).choose("org/many")


def test_url_source_file_changes(hub: HubServer) -> None:
    hub.size_shift = 32
    with pytest.raises(GGUFError, match="it changed while it was read"):
        read_reference("org/one")


def test_url_source_without_ranges(hub: HubServer) -> None:
    hub.ranges = False
    url = f"{hub.files}/org/one/model.gguf"
    with UrlSource(url) as source:
        assert source.read(0, 10)[:4] == b"GGUF"
        assert source.fetched == FIRST_CHUNK
        assert (
            source.read(1_000_000, 10)
            == hub.repositories["org/one"].files["model.gguf"][1_000_000 : 1_000_000 + (1 << 19)]
        )
    assert _header(read_reference(url)).metadata.block_count == 7
    assert _header(read_reference("hf://org/many/model-Q8_0.gguf")).metadata.block_count == 3


def test_hub_repository_with_config_only(hub: HubServer) -> None:
    model = read_reference("org/config")
    assert model == ModelConfig("org/config", _CONFIG, 1_235_814_400)
    assert read_reference("hf://org/config/config.json") == ModelConfig("org/config/config.json", _CONFIG)


def test_hub_cache_before_network(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "cache" / "models--org--cached" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.gguf").write_bytes(sample())
    refs = tmp_path / "cache" / "models--org--cached" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    header = _header(read_reference("hf://org/cached/model.gguf"))
    assert header.path == str(snapshot / "model.gguf")
    assert hub.requests == []
    with pytest.raises(GGUFError, match="HF_HUB_OFFLINE is set, and the file is not in the cache"):
        read_reference("hf://org/many/model-Q8_0.gguf")


# Local references need no network.


def test_reference_local_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GGUFError, match=r"neither a GGUF file nor a config\.json"):
        read_reference(".")
    (tmp_path / "config.json").write_text(json.dumps(_CONFIG))
    assert read_reference(str(tmp_path)) == ModelConfig(str(tmp_path), _CONFIG)
    assert read_reference("config.json") == ModelConfig("config.json", _CONFIG)
    (tmp_path / "model-Q8_0.gguf").write_bytes(sample())
    assert isinstance(_header(read_reference(str(tmp_path))).metadata, Metadata)
    assert _header(read_reference("model-Q8_0.gguf")).tensors
    (tmp_path / "other.gguf").write_bytes(sample())
    model = read_reference(str(tmp_path))
    assert isinstance(model, Choices)
    assert [model.reference(each) for each in model.choices] == [
        str(tmp_path / "model-Q8_0.gguf"),
        str(tmp_path / "other.gguf"),
    ]
    # A folder of two levels looks like a repository's name; an existing folder has priority.
    (tmp_path / "org" / "repo").mkdir(parents=True)
    (tmp_path / "org" / "repo" / "x.gguf").write_bytes(sample())
    assert _header(read_reference("org/repo")).tensors


@pytest.mark.parametrize("reference", ["none.gguf", "org/none.gguf", "./org/none", "~/none", "/none/x", "a/b/c.gguf"])
def test_reference_missing_file_not_looked_up_on_hub(reference: str) -> None:
    with pytest.raises(GGUFError, match="cannot be opened: No such file or directory"):
        read_reference(reference)


@pytest.mark.parametrize("reference", ["hf://", "hf://org", "hf://org/", "hf:///x", "hf://../x/y"])
def test_reference_names_no_model(reference: str) -> None:
    with pytest.raises(UsageError, match="names no model"):
        read_reference(reference)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "not a JSON object"), ("{", "not JSON"), ("[" * 100_000, "not JSON"), ("\xff", "UTF-8")],
)
def test_reference_broken_config(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(GGUFError, match=message):
        read_reference(str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("model.q8_0.gguf", "Q8_0"),
        ("ggml-model-f16.gguf", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("UD-Q4_K_XL/DeepSeek-V3-UD-Q4_K_XL-00001-of-00009.gguf", "UD-Q4_K_XL"),
        ("BF16/model-00001-of-00002.gguf", "BF16"),
        ("x-IQ2_XXS.gguf", "IQ2_XXS"),
        ("x-TQ1_0.gguf", "TQ1_0"),
        ("x-i1-IQ3_M.gguf", "IQ3_M"),
        ("Qwen3-0.6B.gguf", None),
        ("model.gguf", None),
    ],
)
def test_quant_of_file_name(path: str, quant: str | None) -> None:
    assert quant_of(path) == quant
