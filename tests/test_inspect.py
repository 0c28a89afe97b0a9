"""``llamatel inspect``: the page, the JSON, the notebook's HTML; on every model of the suite and untrusted names."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from llamatel.cli.main import main
from llamatel.gguf import GGUFHeader, Metadata, SkippedArray, TensorInfo
from llamatel.gguf.header import read_header
from llamatel.llama import parse_gguf_header
from llamatel.plan import shape_from_config
from llamatel.plan.architectures import ARCHITECTURES
from llamatel.plan.model_report import report_of
from llamatel.ui.view import ASCII, UNICODE
from llamatel.ui.view.html import model_html
from llamatel.ui.view.model_page import layers_text, model_text, tensors_text
from llamatel.ui.view.text_page import parameters, printable, size
from tests.bytes_source import BytesSource
from tests.exact.models import MODELS, TinyModel
from tests.exact.writer import full_key, read_table
from tests.gguf_files import STRING, U32, Writer, sample
from tests.hub_server import TOKEN, Repository, serve_hub
from tests.parts.terminal import Terminal, plain
from tests.tiny_gguf import write_tiny_model

_TENSORS = read_table()

LLAMA_3_2_1B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("inspect") / "tiny.gguf")


def _inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["inspect", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(_inspect(capsys, *arguments, "--json"))


def test_inspect_page(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = _inspect(capsys, str(tiny), "--layers", "--tensors")
    lines = page.splitlines()
    assert lines[0] == "llamatel tiny"
    for line in (
        f"file          {tiny}",
        "architecture  llama",
        "parameters    119,360, 32.00 bits each",
        "attention     GQA, 2 query heads to a KV head",
        "heads         4 query, 2 KV; 16 values a key, 16 a value",
        "layers        2",
        "KV cache      256 bytes a token at f16",
        "context       4,096 tokens",
        "tokenizer     354 tokens, llama, chat template",
        "GQA of 2             2    8,192     24,576          256 B   50.0%  this model",
        "0-1    4/2    all    64x64 F32  64x32 F32  64x32 F32  64x64 F32",
        "blk.1.attn_k.weight       64x32   F32   8,192",
    ):
        assert line in lines
    assert max(len(line) for line in lines if str(tiny) not in line) <= 80


def test_inspect_json(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, str(tiny), "--layers", "--tensors")
    assert (found["name"], found["architecture"], found["parameters"], found["file_type"]) == (
        "llamatel tiny", "llama", 119_360, "F32"
    )  # fmt: skip
    attention = found["attention"]
    assert (attention["type"], attention["heads"], attention["kv_heads"], attention["group_size"]) == ("GQA", 4, 2, 2)
    assert found["kv_bytes_per_token"]["f16"] == {"lasting": 256, "windowed": 0, "total": 256}
    assert found["kv_bytes_per_token"]["q8_0"] is None  # heads of 16 do not fill its blocks of 32
    assert found["file_bytes"] == tiny.stat().st_size
    assert (found["missing_bytes"], found["tensor_count"], len(found["tensors"])) == (0, 21, 21)
    assert sum(part["n_bytes"] for part in found["weights"]["parts"]) == found["tensor_bytes"] == 4 * 119_360
    assert found["metadata"]["llama.context_length"] == 4096
    assert found["metadata"]["tokenizer.ggml.tokens"] == {"skipped": "string", "count": 354}
    assert found["tokenizer"] == {"model": "llama", "pre": None, "chat_template": True, "vocabulary": 354}
    assert [layer["projections"]["k"][0]["shape"] for layer in found["layers"]] == [[64, 32], [64, 32]]
    assert [each["name"] for each in found["comparison"] if each["own"]] == ["GQA of 2"]
    assert "layers" not in _json(capsys, str(tiny))


def _header(model: TinyModel) -> GGUFHeader:
    """A header of a suite model: metadata as gguf-py writes it, tensors without data."""
    values: dict[str, Any] = {"general.architecture": model.architecture}
    for key, value in model.metadata.items():
        values[full_key(model.architecture, key)] = tuple(value) if isinstance(value, list) else value
    tensors = []
    for name, shape in _TENSORS[model.name].items():
        tensors.append(TensorInfo(name, tuple(shape), "F32", 0, 4))
    return GGUFHeader(
        ("x.gguf",), (1 << 20,), 3, False, 32, Metadata(values, {}), len(tensors), tuple(tensors), (1024,)
    )


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_inspect_every_model_of_the_suite(model: TinyModel) -> None:
    report = report_of(_header(model))
    assert report.shape is not None
    for glyphs in (UNICODE, ASCII):
        page = model_text(report, glyphs).plain
        layers = layers_text(report, glyphs).plain
        assert max(map(len, (page + "\n" + layers).splitlines())) <= 80
        assert "None" not in page + layers
        assert "attention  " in page
    assert len(layers.splitlines()) > 1
    document = report.as_dict(layers=True, tensors=True)
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))
    assert len(document["layers"]) == len(report.shape.layers)
    assert document["attention"]["type"] is not None
    if any(role in mine for mine in report.projections.values() for role in ("q", "qkv")):
        assert " x " not in layers
        assert re.search(r"\d+x\d+", layers)
    _Checker().feed(model_html(report))


# From the Hub.


def test_inspect_repository_with_config_only() -> None:
    with serve_hub({"meta/Llama-3.2-1B": _repository()}) as hub:
        env = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN}
        shown = _run("meta/Llama-3.2-1B", env=env)
        assert shown.returncode == 0
        assert "attention     GQA, 4 query heads to a KV head" in shown.stdout
        assert "heads         32 query, 8 KV; 64 values a key, 64 a value" in shown.stdout
        assert "parameters    1.24 B" in shown.stdout
        found = json.loads(_run("meta/Llama-3.2-1B", "--json", "--layers", env=env).stdout)
        attention = found["attention"]
        assert (attention["type"], attention["heads"], attention["kv_heads"], attention["group_size"]) == (
            "GQA", 32, 8, 4
        )  # fmt: skip
        refused = _run("meta/Llama-3.2-1B", env={**env, "HF_TOKEN": ""})
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("llamatel: error: meta/Llama-3.2-1B/config.json: this repository is gated: ")


def _repository() -> Repository:
    return Repository({"config.json": json.dumps(LLAMA_3_2_1B).encode()}, gated=True, parameters=1_235_814_400)


def _run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llamatel.cli.main", "inspect", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", **(env or {})},
        check=False,
    )


def test_inspect_repository_choices() -> None:
    files = {"m-Q4_K_M.gguf": sample(), "m-Q8_0.gguf": sample() + bytes(4096)}
    with serve_hub({"org/m-GGUF": Repository(files)}) as hub:
        env = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": ""}
        shown = _run("org/m-GGUF", env=env).stdout.splitlines()
        assert shown[0] == "org/m-GGUF has 2 models; name one of them:"
        assert [line.split()[:2] for line in shown[2:]] == [
            ["org/m-GGUF:Q4_K_M", "Q4_K_M"],
            ["org/m-GGUF:Q8_0", "Q8_0"],
        ]
        choices = json.loads(_run("org/m-GGUF", "--json", env=env).stdout)["choices"]
        assert [choice["file_bytes"] for choice in choices] == [len(data) for data in files.values()]
        assert "Zoë" in _run(choices[0]["reference"], env=env).stdout


@pytest.mark.slow
def test_inspect_terminal_progress_and_80_columns() -> None:
    with serve_hub({"org/one": Repository({"m.gguf": sample(words=60_000)})}) as hub:
        command = [sys.executable, "-m", "llamatel.cli.main", "inspect", "org/one", "--layers"]
        env = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": ""}
        with Terminal(command, env=env) as terminal:
            terminal.wait_for("layer ")
            assert terminal.wait(60) == 0
    assert "reading the header" in terminal.text
    page = plain(terminal.text)
    assert "architecture  llama" in page
    assert max(len(line) for line in page.rpartition("\r")[2].splitlines()) <= 80


def test_inspect_closed_pipe(tiny: Path) -> None:
    script = f"{sys.executable} -m llamatel.cli.main inspect {tiny} --tensors | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("llamatel tiny\n0\n", "")


# Unusual files and names.


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.gguf"], 1, "none.gguf: cannot be opened: No such file or directory"),
        (["hf://x"], 2, "'hf://x' names no model"),
        ([], 2, "Missing argument 'MODEL'"),
    ],
)
def test_inspect_errors_are_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *arguments]) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_inspect_tiny(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["inspect"], ["plan", "--device", "none"]):
        assert main([*verb, "tiny"]) == 0
        assert "GQA, 4 query heads to a KV head" in capsys.readouterr().out


def test_inspect_empty_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", ""]) == 2
    assert "'' names no model" in capsys.readouterr().err


def test_inspect_file_without_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.gguf"
    write = Writer()
    path.write_bytes(write.file([write.key("a.b", U32, 1)], [write.tensor("t", (32,), 0, 0)], data=128))
    page = _inspect(capsys, str(path), "--layers", "--tensors")
    assert "no model      " in page
    assert _json(capsys, str(path), "--layers")["why_no_shape"].startswith("the file has no general.architecture")
    path.write_bytes(write.file([write.key("general.architecture", STRING, "neverheard")]))
    page = _inspect(capsys, str(path))
    assert "architecture  neverheard" in page
    assert "none: a file without tensors" in page
    assert "unknown " in page


def test_inspect_incomplete_download(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:-100_000])
    assert "incomplete    97.7 KiB of the tensors' data are missing" in _inspect(capsys, str(cut))


HOSTILE = "<script>alert(1)</script>\x1b[2J\x07\u202e&\"'\n" + "x" * 5000


def _hostile() -> GGUFHeader:
    write = Writer()
    keys = [
        write.key("general.architecture", STRING, HOSTILE),
        write.key("general.name", STRING, HOSTILE),
        write.key("tokenizer.ggml.model", STRING, HOSTILE),
        write.key(f"{HOSTILE}.block_count", U32, 2),
        write.key(f"{HOSTILE}.rope.scaling.type", STRING, HOSTILE),
        write.key(f"{HOSTILE}.context_length", U32, 64),
    ]
    return read_header(BytesSource(write.file(keys, [write.tensor(HOSTILE, (32,), 0, 0)]), HOSTILE), read_tensors=True)


class _Checker(HTMLParser):
    """Fails on tags other than those of the page, and on unclosed tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"div", "b", "table", "tr", "th", "td", "details", "summary"}
        assert attrs in ([], [("style", "text-align: left")])
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_inspect_untrusted_names_are_escaped() -> None:
    header = _hostile()
    report = report_of(header)
    assert header.tensors is not None
    for text in (model_text(report), layers_text(report), tensors_text(header.tensors)):
        assert not set(text.plain) & {"\x1b", "\x07", "\u202e", "\r"}
        assert max(map(len, text.plain.splitlines())) < 600
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=True, color_system="standard", markup=False).print(model_text(report))
    assert "\x1b[2J" not in out.getvalue()
    html = header._repr_html_()
    assert "<script" not in html
    checker = _Checker()
    checker.feed(html)
    assert checker.open == []
    assert "<script>alert(1)</script>" in checker.text


def test_inspect_notebook_representations(tiny: Path) -> None:
    for shown in (
        parse_gguf_header(tiny, read_tensors=True)._repr_html_(),
        parse_gguf_header(tiny)._repr_html_(),
        shape_from_config(LLAMA_3_2_1B)._repr_html_(),
    ):
        checker = _Checker()
        checker.feed(shown)
        assert checker.open == []
        assert "GQA, " in checker.text
        assert "this model" in checker.text


def test_size_three_digits() -> None:
    numbers = (0, 999, 1000, 98_816, 1_022_000, 1 << 20, 4_920_734_176, 1 << 40, 1 << 60)
    assert [size(number) for number in numbers] == [
        "0 B", "999 B", "0.98 KiB", "96.5 KiB", "998 KiB", "1.00 MiB", "4.58 GiB", "1.00 TiB", "1048576 TiB"
    ]  # fmt: skip
    assert (size(None), size(None, ASCII)) == ("–", "-")


def test_parameters_three_digits() -> None:
    numbers = (0, 999_999, 1_000_000, 1_235_814_400, 999_600_000, 70_553_706_496, 671_026_419_200, 1_000_000_000_000)
    assert [parameters(number) for number in numbers] == [
        "0", "999,999", "1 M", "1.24 B", "1000 M", "70.6 B", "671 B", "1 T"
    ]  # fmt: skip
    assert parameters(None) == "–"


def test_printable_keeps_words() -> None:
    assert printable("Zoë's model 日本") == "Zoë's model 日本"
    assert printable("a\x00b\x9bc\u2028d") == "a?b?c?d"
    assert len(printable("x" * 1000)) == 200


# Any metadata at all: a page or a UsageError.

_KEYS = re.findall(
    r"\S+",
    "attention.causal attention.compress_ratios attention.head_count attention.head_count_kv attention.key_length"
    " attention.indexer.key_length attention.indexer.top_k attention.indexer.types attention.key_length_mla"
    " attention.key_length_swa attention.kv_lora_rank attention.recurrent_layers attention.shared_kv_layers"
    " attention.sliding_window attention.sliding_window_pattern attention.value_length attention.value_length_mla"
    " attention.value_length_swa block_count context_length embedding_length expert_count expert_used_count"
    " feed_forward_length full_attention_interval hyper_connection.count kda.head_dim leading_dense_block_count"
    " nextn_predict_layers num_loops ple.conv_kernel ple.layers ple.ngram_size rope.freq_base rope.scaling.type"
    " shortconv.l_cache ssm.conv_kernel ssm.group_count ssm.inner_size ssm.state_size token_shift_count vocab_size"
    " wkv.head_size",
)
_NUMBERS = st.one_of(st.integers(-2, 12), st.sampled_from([-(1 << 63), -1, 0, 1, 64, 512, 513, (1 << 32) - 1, 1 << 63]))
_VALUES = st.one_of(
    _NUMBERS, st.lists(_NUMBERS, max_size=5).map(tuple), st.floats(), st.booleans(), st.text(max_size=5),
    st.lists(st.one_of(st.text(max_size=2), st.floats(), st.booleans()), max_size=3).map(tuple),
    st.just(SkippedArray("i32", 1 << 40, 0)),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    architecture=st.one_of(st.sampled_from(sorted(ARCHITECTURES)), st.text(max_size=5)),
    blocks=st.integers(0, 6),
    keys=st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=20),
    own=st.dictionaries(st.sampled_from(["general.name", "general.file_type", "tokenizer.ggml.tokens"]), _VALUES),
)
def test_inspect_any_metadata(architecture: str, blocks: int, keys: dict[str, Any], own: dict[str, Any]) -> None:
    values = {f"{architecture}.{key}": value for key, value in {"block_count": blocks, **keys}.items()}
    metadata = Metadata({"general.architecture": architecture, **own, **values}, {})
    tensors = (
        TensorInfo("blk.0.attn_q.weight", (8, 8), "F32", 0, 256),
        TensorInfo("blk.9.attn_k.weight", (), "?", 0, None),
    )
    report = report_of(GGUFHeader(("x.gguf",), (1 << 20,), 3, False, 32, metadata, 2, tensors, (1024,)))
    json.dumps(report.as_dict(layers=True, tensors=True), allow_nan=False)
    assert model_text(report).plain
    assert layers_text(report) is not None
    _Checker().feed(model_html(report))
