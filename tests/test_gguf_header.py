"""parse_gguf_header on valid files: every version and byte order, split models, real vocabularies."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from llamatel.errors import GGUFError
from llamatel.gguf import FILE_TYPES, TENSOR_TYPES, SkippedArray
from llamatel.gguf.byte_source import FileSource
from llamatel.gguf.header import read_header
from llamatel.llama import parse_gguf_header
from tests.bytes_source import BytesSource
from tests.gguf_files import ARRAY, STRING, U32, Writer, sample
from tests.tiny_gguf import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_header_every_version_and_byte_order(tmp_path: Path, version: int, order: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(sample(version, order))
    header = parse_gguf_header(path, read_tensors=True, read_arrays=True)
    assert (header.version, header.big_endian, header.alignment, header.path) == (version, order == ">", 32, str(path))
    data = header.metadata
    assert (data["general.name"], data["llama.number_6"], data["llama.number_7"]) == ("Zoë", 1.5, True)
    assert (data["llama.number_11"], data.kind("llama.number_11")) == (-(1 << 40), "i64")
    assert data["llama.list_12"] == (0.1, 0.1)
    assert data.kind("llama.list_12") == "array of f64"
    assert data["tokenizer.ggml.tokens"] == tuple("t" * number for number in range(40))
    assert data["general.tags"] == ("a", "", "x" * 300)
    assert header.tensors is not None
    assert [(each.name, each.shape, each.type, each.offset, each.n_bytes) for each in header.tensors] == [
        ("token_embd.weight", (64, 4), "F32", 0, 1024),
        ("blk.0.attn_q.weight", (256, 2), "Q4_K", 1024, 288),
        ("scale", (), "F16", 1312, 2),
    ]
    assert (header.n_params, header.n_bytes, header.missing_bytes) == (256 + 512 + 1, 1024 + 288 + 2, 0)
    assert header.data_offset is not None
    assert header.data_offset + 1344 == path.stat().st_size


def test_header_token_arrays_skipped_unless_requested(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(sample())
    data = parse_gguf_header(path).metadata
    tokens = data["tokenizer.ggml.tokens"]
    assert isinstance(tokens, SkippedArray)
    assert (tokens.kind, len(tokens)) == ("string", 40)
    assert path.read_bytes()[tokens.offset : tokens.offset + 17] == bytes(8) + b"\1" + bytes(7) + b"t"
    assert data["llama.attention.head_count_kv"] == (4, 0, 4)
    named = parse_gguf_header(path, read_arrays=["tokenizer.ggml.scores"]).metadata
    assert named["tokenizer.ggml.scores"] == (0.5,) * 40
    assert isinstance(named["tokenizer.ggml.tokens"], SkippedArray)


def test_metadata_mapping_and_attributes(tiny: Path) -> None:
    info = parse_gguf_header(str(tiny))
    data = info.metadata
    assert (data.architecture, data.name, data.embedding_length, data.block_count) == ("llama", "llamatel tiny", 64, 2)
    assert (data.context_length, data.head_count, data.head_count_kv, data.attention_head_count) == (4096, 4, 2, 4)
    assert (data.rope_dimension_count, data.tokenizer_ggml_model, data.vocab_size) == (16, "llama", 354)
    assert data.own("attention.head_count_kv") == 2
    assert data.own("attention.key_length") is None
    assert dict(data)["llama.block_count"] == data["llama.block_count"] == 2
    assert {"embedding_length", "head_count"} <= set(dir(data))
    assert "llama: " in repr(data)
    assert repr(parse_gguf_header(tiny, read_tensors=True)) == (
        f"<GGUFHeader of {tiny.name}: llama, {len(data)} keys, {info.tensor_count} tensors>"
    )
    with pytest.raises(AttributeError, match=r"has no 'sliding_window'; its keys are list\(metadata\)"):
        _ = data.sliding_window
    with pytest.raises(AttributeError, match="has no 'embeding_length'; it has embedding_length"):
        _ = data.embeding_length
    assert not hasattr(data, "sliding_window")
    with pytest.raises(KeyError):
        _ = data["llama.attention.sliding_window"]
    assert copy.deepcopy(info).metadata.block_count == pickle.loads(pickle.dumps(info)).metadata.block_count == 2  # noqa: S301


def test_header_tensors_only_if_requested(tiny: Path) -> None:
    info = parse_gguf_header(tiny)
    assert (info.tensors, info.n_params, info.n_bytes, info.data_offset, info.missing_bytes) == (None,) * 5
    assert info.tensor_count == 21
    assert (info.architecture, info.file_type) == ("llama", "F32")
    full = parse_gguf_header(tiny, read_tensors=True)
    assert full.tensors is not None
    assert len(full.tensors) == 21
    assert full.n_bytes == 4 * (full.n_params or 0)
    assert (full.file, full.size_mb, full.tensors[0].dtype) == (tiny.name, tiny.stat().st_size / 2**20, "F32")


def test_header_imports_nothing_heavy(tiny: Path) -> None:
    program = (
        "import sys\nfrom llamatel.llama import parse_gguf_header\n"
        "parse_gguf_header(sys.argv[1], read_tensors=True)\n"
        "print({'gguf', 'huggingface_hub', 'numpy', 'opentelemetry', 'rich', 'urllib3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tiny)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_header_missing_bytes_of_partial_download(tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:-1000])
    assert parse_gguf_header(tiny, read_tensors=True).missing_bytes == 0
    assert parse_gguf_header(cut, read_tensors=True).missing_bytes == 1000


class _Counting(FileSource):
    fetched = 0

    def read(self, offset: int, n_bytes: int) -> bytes:
        data = super().read(offset, n_bytes)
        self.fetched += len(data)
        return data


def test_header_reads_no_tensor_data(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    write = Writer()
    keys = [write.key("tokenizer.ggml.scores", ARRAY, (6, (0.0,) * 1_000_000)), write.key("a.last", U32, 5)]
    path.write_bytes(write.file(keys, [write.tensor("t", (1 << 20, 4), 0, 0)], data=1 << 24))
    source = _Counting(path)
    with source:
        header = read_header(source, read_tensors=True)
        assert header.metadata["a.last"] == 5
        assert source.fetched <= 2 * source.CHUNK  # the numbers are skipped without reading them


def test_cursor_strings_across_chunks(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write = Writer()
    words = tuple("w" * length for length in (*range(600), 700_000, 0, 255, 256, 257, 3)) * 3
    keys = [write.key("tokenizer.ggml.tokens", ARRAY, (STRING, words)), write.key("a.last", STRING, "end")]
    path.write_bytes(write.file(keys))
    assert parse_gguf_header(path).metadata["a.last"] == "end"
    assert parse_gguf_header(path, read_arrays=True).metadata["tokenizer.ggml.tokens"] == words


def test_header_long_arrays_skipped() -> None:
    write = Writer()
    data = write.file([write.key("a.list", ARRAY, (0, (1,) * 20_000)), write.key("a.short", ARRAY, (0, (1,) * 9))])
    metadata = read_header(BytesSource(data)).metadata
    assert metadata["a.list"] == SkippedArray("u8", 20_000, 24 + 8 + 6 + 4 + 4 + 8)
    assert metadata["a.short"] == (1,) * 9


def test_header_unknown_tensor_type_has_no_size() -> None:
    write = Writer()
    data = write.file([], [write.tensor("t", (64,), 99, 0), write.tensor("u", (64,), 4, 0)])
    header = read_header(BytesSource(data), read_tensors=True)
    assert header.tensors is not None
    assert [(each.type, each.n_bytes) for each in header.tensors] == [("type 99", None), ("Q4_2", None)]
    assert (header.n_params, header.n_bytes) == (128, None)


def test_header_unknown_file_type() -> None:
    write = Writer()
    for number, name in ((15, "Q4_K_M"), (15 | 1024, "Q4_K_M"), (77, None)):
        data = write.file([write.key("general.file_type", U32, number)])
        assert read_header(BytesSource(data)).file_type == name
    assert read_header(BytesSource(write.file())).file_type is None
    assert read_header(BytesSource(write.file())).architecture is None


def test_type_tables_equal_gguf_py() -> None:
    for kind, (block, n_bytes) in gguf.GGML_QUANT_SIZES.items():
        if kind is gguf.GGMLQuantizationType.Q8_1:  # gguf-py counts 32-bit scales; ggml's block_q8_1 has halves
            n_bytes -= 4  # noqa: PLW2901
        assert TENSOR_TYPES[kind][1:] == (kind.name, block, n_bytes)
    for file_type in gguf.LlamaFileType:
        if file_type is not gguf.LlamaFileType.GUESSED:
            assert file_type.name in (f"MOSTLY_{FILE_TYPES[file_type]}", f"ALL_{FILE_TYPES[file_type]}")


# Split models.


def _split(folder: Path, shards: int = 3) -> list[Path]:
    write = Writer()
    paths = []
    for number in range(shards):
        keys = [write.key("general.architecture", STRING, "llama")] if number == 0 else []
        keys += [write.key("split.no", 2, number), write.key("split.count", 2, shards)]
        keys.append(write.key("split.tensors.count", 5, shards))
        path = folder / f"big-{number + 1:05d}-of-{shards:05d}.gguf"
        path.write_bytes(write.file(keys, [write.tensor(f"blk.{number}.w", (32,), 0, 0)], data=128))
        paths.append(path)
    return paths


@pytest.mark.parametrize("given", [0, 1, 2])
def test_split_model_read_from_all_files(tmp_path: Path, given: int) -> None:
    paths = _split(tmp_path)
    header = parse_gguf_header(paths[given], read_tensors=True)
    assert header.files == tuple(map(str, paths))
    assert header.tensors is not None
    assert [(each.name, each.shard) for each in header.tensors] == [(f"blk.{n}.w", n) for n in range(3)]
    assert (header.tensor_count, header.n_params, header.missing_bytes) == (3, 96, 0)
    assert header.metadata.architecture == "llama"
    assert header.file_sizes == tuple(path.stat().st_size for path in paths)
    light = parse_gguf_header(paths[given])
    assert (light.tensor_count, light.files) == (3, (str(paths[0]),))


def test_split_model_missing_file(tmp_path: Path) -> None:
    paths = _split(tmp_path)
    paths[1].unlink()
    with pytest.raises(GGUFError, match=r"big-00002-of-00003\.gguf: cannot be opened: No such file"):
        parse_gguf_header(paths[0], read_tensors=True)
    assert parse_gguf_header(paths[0]).tensor_count == 3


def test_split_model_mismatched_files(tmp_path: Path) -> None:
    paths = _split(tmp_path)
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(GGUFError, match=r"not shard 2 of its model: split\.no 2"):
        parse_gguf_header(paths[0], read_tensors=True)
    renamed = tmp_path / "model.gguf"
    renamed.write_bytes(paths[0].read_bytes())
    with pytest.raises(GGUFError, match=r"split\.count 3, the name says 1"):
        parse_gguf_header(renamed)


# Real vocabularies, 0.6 to 16 MB. No data follows them, so the end offset can be checked for all.


def test_header_of_real_vocabularies(vocabulary_files: list[Path]) -> None:
    for path in vocabulary_files:
        _check_vocabulary(path)


def _check_vocabulary(path: Path) -> None:
    header = parse_gguf_header(path, read_tensors=True)
    assert header.data_offset is not None
    assert 0 <= header.data_offset - path.stat().st_size < header.alignment
    full = parse_gguf_header(path, read_arrays=True)
    for key, value in header.metadata.items():
        whole = full.metadata[key]
        if isinstance(value, SkippedArray):
            assert isinstance(whole, tuple)
            assert len(whole) == value.count
        else:
            assert repr(whole) == repr(value)


def test_parse_gguf_header_file_object() -> None:
    with pytest.raises(TypeError):
        parse_gguf_header(io.BytesIO(b""))  # type: ignore[arg-type]
