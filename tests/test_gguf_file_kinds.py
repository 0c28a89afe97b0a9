"""Files that are no model or of other formats, tensor types that llama.cpp lacks, Ollama's store."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from llamatel.cli.main import main
from llamatel.errors import GGUFError, UsageError
from llamatel.gguf.file_kinds import not_a_model, other_format
from llamatel.gguf.header import GGUFHeader
from llamatel.gguf.model_reference import read_reference
from llamatel.gguf.ollama_store import blob_of
from llamatel.plan.shape_from_gguf import unknown_architecture
from tests.gguf_files import ARRAY, STRING, U32, Writer, sample

WRITE = Writer()
LLAMA: dict[str, int] = {
    "block_count": 2,
    "embedding_length": 64,
    "context_length": 4096,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}


def _gguf(
    architecture: str = "llama", *more: bytes, types: tuple[int, ...] = (0,), keys: dict[str, int] | None = None
) -> bytes:
    """A model's header with a tensor of each type, 256 values wide."""
    found = [WRITE.key("general.architecture", STRING, architecture)]
    found += [
        WRITE.key(f"{architecture}.{key}", U32, value) for key, value in (LLAMA if keys is None else keys).items()
    ]
    tensors = [
        WRITE.tensor(f"blk.0.t{number}.weight", (256, 1), kind, 4096 * number) for number, kind in enumerate(types)
    ]
    return WRITE.file([*found, *more], tensors, data=8192 * len(types))


def _lora() -> bytes:
    return _gguf(
        "llama", WRITE.key("general.type", STRING, "adapter"), WRITE.key("adapter.type", STRING, "lora"), keys={}
    )


OTHERS = {
    "mmproj.gguf": (_gguf("clip", keys={"vision.block_count": 27}), "multimodal projector", "--mmproj"),
    "lora.gguf": (_lora(), "LoRA adapter", "--lora"),
    "cvector.gguf": (_gguf("controlvector", keys={"layer_count": 31}), "control vector", "--control-vector"),
    "imatrix.gguf": (
        WRITE.file(
            [
                WRITE.key("general.type", STRING, "imatrix"),
                WRITE.key("imatrix.datasets", ARRAY, (STRING, ("wiki.txt",))),
            ],
            [WRITE.tensor("blk.0.attn_q.weight.in_sum2", (64, 1), 0, 0)],
            data=512,
        ),
        "importance matrix",
        "llama-quantize --imatrix",
    ),
    "flux.gguf": (_gguf("flux", keys={}), "a model for images or video", "llama-server cannot load it"),
    "whisper.gguf": (_gguf("whisper", keys={}), "a model for speech", "llama-server cannot load it"),
    "vocab.gguf": (
        WRITE.file(
            [
                WRITE.key("general.architecture", STRING, "llama"),
                *(WRITE.key(f"llama.{key}", U32, value) for key, value in LLAMA.items()),
                WRITE.key("tokenizer.ggml.tokens", ARRAY, (STRING, ("a", "b"))),
            ]
        ),
        "vocabulary without weights",
        "llama-server cannot load it",
    ),
    "renamed-part.gguf": (
        WRITE.file([WRITE.key("split.no", 2, 1), WRITE.key("split.tensors.count", 5, 3)], [], data=32),
        "part 2 of a split model",
        "name its first file",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("command", ["plan", "inspect"])
def test_not_a_model_error_is_one_line(
    name: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """wild.md A16: the error names the file's kind and the flag that accepts it."""
    data, what, flag = OTHERS[name]
    path = tmp_path / name
    path.write_bytes(data)
    words = [command, str(path)] + (["--device", "none"] if command == "plan" else [])
    assert main(words) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert len(shown.err.splitlines()) == 1
    assert what in shown.err
    assert flag in shown.err


def test_folder_with_a_model_and_its_projector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(_gguf())
    (tmp_path / "mmproj-model-f16.gguf").write_bytes(OTHERS["mmproj.gguf"][0])
    assert main(["plan", str(tmp_path), "--device", "none"]) == 0
    assert capsys.readouterr().out.startswith("model-Q4_K_M.gguf")


def test_plan_of_a_model_without_layers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(_gguf(keys={"context_length": 128}))
    assert main(["plan", str(path), "--device", "t4"]) == 0
    page = capsys.readouterr().out
    assert "llama-server does not start: key not found in model: llama.block_count" in " ".join(page.split())
    assert "0 B" not in page


def test_inspect_lists_the_tensors_of_a_projector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(OTHERS["mmproj.gguf"][0])
    assert main(["inspect", str(path), "--tensors"]) == 0
    assert "blk.0.t0.weight" in capsys.readouterr().out
    assert main(["inspect", str(path), "--json"]) == 2
    assert "projector" in json.loads(capsys.readouterr().out)["why_no_shape"]


def _plan(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert main(["plan", str(path), "--device", "rtx3060", "--json", *more, "--", "-c", "4096", "-np", "1"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


KV = 2 * 2 * 2 * 16 * 2 * 4096


@pytest.mark.parametrize("kind", [99, 137, 156, 223, 337, 399])
def test_plan_unknown_tensor_type_cache_is_exact(kind: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """wild.md A6: ik_llama.cpp's types: the cache does not depend on the weights; their fit is unknown."""
    path = tmp_path / "ik.gguf"
    path.write_bytes(_gguf(types=(0, kind)))
    found = _plan(path, capsys)
    assert found["kv_cache"]["total_bytes"] == KV
    assert found["kv_cache"]["exact"]
    assert (found["weights_bytes"], found["fits"]) == (None, None)
    assert f"type {kind}" in found["weights_unknown"]
    assert ("ik_llama.cpp" in found["weights_unknown"]) == (kind > 99)
    assert main(["plan", str(path), "--device", "rtx3060"]) == 0
    page = capsys.readouterr().out
    assert f"type {kind}" in page
    assert "fits on" not in page
    assert main(["inspect", str(path)]) == 0
    assert "llama" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [4, 5, 31, 32, 33, 36, 37, 38])
def test_plan_removed_tensor_type_is_refused(kind: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """wild.md A7: BitNet's i2_s is type 36, which llama.cpp removed."""
    path = tmp_path / "bitnet.gguf"
    path.write_bytes(_gguf("bitnet", types=(0, kind)))
    found = _plan(path, capsys)
    assert f"({kind}, removed from llama.cpp" in found["refused"]
    assert (found["weights_bytes"], found["fits"]) == (None, None)
    assert main(["plan", str(path), "--device", "rtx3060"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "llama-server does not start: it does not load tensors of type" in page
    assert "fits on" not in page


@pytest.mark.parametrize("kind", [1024, 1 << 31])
def test_header_invalid_tensor_type(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(_gguf(types=(kind,)))
    with pytest.raises(GGUFError, match=f"tensor type {kind}"):
        read_reference(str(path))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gptoss", "gpt-oss"), ("gpt_oss", "gpt-oss"), ("GPT-OSS", "gpt-oss"), ("lama", "llama"),
        ("qwen3_moe", "qwen3moe"), ("deepseek_v3", "deepseek2"), ("gemma-3", "gemma3"), ("frobnicator", None),
    ],
)  # fmt: skip
def test_plan_unknown_architecture_suggestions(
    name: str, meant: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unknown_architecture(name).endswith(f"(did you mean {meant}?)" if meant else "is not known")
    path = tmp_path / "model.gguf"
    path.write_bytes(_gguf(name))
    assert main(["plan", str(path), "--device", "none"]) == 2
    shown = capsys.readouterr()
    assert f"architecture '{name}' is not known" in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not shown.out


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (struct.pack("<Q", 70) + b'{"__metadata__":{}}', "safetensors"),
        (b"PK\x03\x04abcdefgh", "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n\n  <html>", "web page"),
        (b'{"model_type": "llama"}', "JSON document"),
        (bytes(64), "unfinished download"),
        (b"ggml", "before GGUF"),
        (b"\x1f\x8b\x08" + bytes(8), "gzip"),
    ],
)
def test_other_format_by_first_bytes(start: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(start)
    assert words in (other_format(start) or "")
    with pytest.raises(GGUFError) as raised:
        read_reference(str(path))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_split_part_without_the_first(tmp_path: Path) -> None:
    path = tmp_path / "x-00002-of-00003.gguf"
    path.write_bytes(WRITE.file([WRITE.key("split.no", 2, 1)], []))
    with pytest.raises(GGUFError) as raised:
        read_reference(str(path))
    assert "part 2 of 3 of a split model, whose first file cannot be read" in str(raised.value)
    assert "x-00001-of-00003.gguf" in str(raised.value)
    with pytest.raises(GGUFError, match=r"parts of a split model without the first: x-00002-of-00003\.gguf"):
        read_reference(str(tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="file names are not bytes there")
@pytest.mark.parametrize("command", ["plan", "inspect"])
def test_file_name_not_utf8(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/mod\xff\xfeel.gguf")
    Path(path).write_bytes(_gguf())
    more = ["--device", "none"] if command == "plan" else []
    for words in ([command, path, *more], [command, path, *more, "--json"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert "mod" in shown
        shown.encode()  # only printable text


@pytest.mark.parametrize("what", ["name", "tensor", "key"])
def test_metadata_text_not_utf8(what: str, tmp_path: Path) -> None:
    keys = [WRITE.key("general.architecture", STRING, "llama")]
    keys += [WRITE.key("general.name", STRING, b"\xff\xfe")] if what == "name" else []
    keys += [WRITE.key(b"llama.\xff", U32, 1)] if what == "key" else []
    tensors = [WRITE.tensor(b"\xff", (32,), 0, 0)] if what == "tensor" else []
    path = tmp_path / "x.gguf"
    path.write_bytes(WRITE.file(keys, tensors, data=128))
    with pytest.raises(GGUFError, match="not UTF-8"):
        read_reference(str(path))


# Ollama's store.

DIGEST = "ab" * 32
_MODEL = "application/vnd.ollama.image.model"


def _store(folder: Path, name: str = "registry.ollama.ai/library/tiny/latest", **document: Any) -> Path:
    manifest = folder / "manifests" / name
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": _MODEL, "digest": f"sha256:{DIGEST}", "size": 5}
    template = {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'cd' * 32}", "size": 5}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [template, layer], **document}))
    (folder / "blobs").mkdir(exist_ok=True)
    (folder / "blobs" / f"sha256-{DIGEST}").write_bytes(sample())
    (folder / "blobs" / f"sha256-{'cd' * 32}").write_text("{{ .Prompt }}")
    return folder


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("registry.ollama.ai/library/tiny/latest", "tiny"),
        ("registry.ollama.ai/library/llama3.2/1b-instruct-q4_K_M", "llama3.2:1b-instruct-q4_K_M"),
        ("registry.ollama.ai/me/model/v1", "me/model:v1"),
        ("hf.co/bartowski/Llama-3.2-1B-GGUF/Q8_0", "hf.co/bartowski/Llama-3.2-1B-GGUF:Q8_0"),
        ("localhost:5000/me/model/latest", "localhost:5000/me/model"),
    ],
)
def test_ollama_reference_resolves_to_blob(
    name: str, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(_store(tmp_path, name)))
    header = read_reference(f"ollama://{reference}")
    assert isinstance(header, GGUFHeader)
    assert header.architecture == "llama"
    # The blob itself is a GGUF without a suffix.
    blob = read_reference(str(tmp_path / "blobs" / f"sha256-{DIGEST}"))
    assert isinstance(blob, GGUFHeader)


@pytest.mark.parametrize("reference", ["", "a/b/c/d", "../x", "a:b:c", "a b", "x/..", "/etc/passwd", "a:../../x"])
def test_ollama_reference_invalid(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(_store(tmp_path)))
    with pytest.raises((UsageError, GGUFError)):
        blob_of(reference)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "no model of its own"),
        ("x", "no model of its own"),
        ([5, None, {"mediaType": _MODEL, "digest": "sha256:../../x"}], "no model of its own"),
        ([{"mediaType": "application/vnd.ollama.image.tensor", "digest": f"sha256:{DIGEST}"}], "stored as tensors"),
    ],
)  # fmt: skip
def test_ollama_manifest_without_a_model(
    layers: object, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(_store(tmp_path, layers=layers)))
    with pytest.raises(GGUFError, match=words):
        read_reference("ollama://tiny")


def test_ollama_store_without_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    with pytest.raises(GGUFError, match="Ollama's store has no such model"):
        read_reference("ollama://tiny:1b")
    (tmp_path / "manifests" / "registry.ollama.ai" / "library" / "tiny").mkdir(parents=True)
    (tmp_path / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest").write_text("{")
    with pytest.raises(GGUFError, match="its manifest cannot be read"):
        read_reference("ollama://tiny")


def test_not_a_model_accepts_real_models(tiny_model: Path) -> None:
    header = read_reference(str(tiny_model))
    assert isinstance(header, GGUFHeader)
    assert not_a_model(header) is None
