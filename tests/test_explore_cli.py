"""``llamatel explore``: tables, JSON, pictures, the report; on the shipped model and on models without some parts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llamatel import explore
from llamatel.cli.main import main
from llamatel.errors import UsageError
from llamatel.explore.matrices import matrices
from llamatel.gguf.header import GGUFHeader
from llamatel.gguf.model_reference import read_reference
from llamatel.models import tiny_model
from llamatel.plan.model_report import ModelReport, report_of
from tests.explored import write_strong

pytestmark = pytest.mark.usefixtures("llama_cpp")

ONE = ("-t", "1")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(path: Path) -> ModelReport:
    header = read_reference(str(path))
    assert isinstance(header, GGUFHeader)
    return report_of(header)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(["explore", *arguments])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(run(capsys, *arguments, "--json"))


def test_explore_heads_table_and_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = run(capsys, "tiny", "heads", *ONE).splitlines()
    assert table[0].split()[:4] == ["layer.head", "kind", "previous", "current"]
    assert len(table) == 1 + 3 * 8
    assert len(set(map(len, table))) == 1
    found = document(capsys, "tiny", "heads", *ONE, "--layers", "1", "--heads", "0,6-7")
    assert [(head["layer"], head["head"], head["kind"]) for head in found["heads"]] == [
        (1, 0, "induction"), (1, 6, "induction"), (1, 7, "induction"),
    ]  # fmt: skip


def test_explore_pictures_and_arrays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "tiny", "keys", "--layers", "0-1", *ONE).split() == [
        "tiny_layer_0_gqa_keys.png", "tiny_layer_1_gqa_keys.png",
    ]  # fmt: skip
    run(capsys, "tiny", "attention", "--layers", "1", "-o", "layer.png", *ONE)
    run(capsys, "tiny", "attention", "--layers", "1", "--heads", "6", "-o", "head.png", *ONE)
    run(capsys, "tiny", "structure", "-o", ".")
    run(capsys, "tiny", "heads", "-o", "heads.png", *ONE)
    assert len(list(here.glob("*.png"))) == 6
    assert all(path.read_bytes().startswith(PNG) for path in here.glob("*.png"))
    run(capsys, "tiny", "attention", "-p", "the red fox", "-n", "2", "-o", "run.npz", *ONE)
    kept = explore.Capture.load(here / "run.npz")
    assert kept.texts[:4] == ("<|begin|>", "the", " red", " fox")
    assert kept.layer(2).weights.shape == (8, 6, 6)


def test_explore_matrices_equal_gguf_py(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = explore.tiny_model()
    found = document(capsys, "tiny", "matrices", "--layers", "1")["matrices"]
    assert [(each["role"], each["shape"]) for each in found] == [
        ("q", [256, 96]), ("k", [64, 96]), ("v", [64, 96]), ("o", [96, 256]),
    ]  # fmt: skip
    data = {tensor.name: np.array(tensor.data, np.float32) for tensor in gguf.GGUFReader(path).tensors}
    for each in found:
        values = data[each["name"]]
        assert each["norm"] == pytest.approx(float(np.linalg.norm(values)), rel=1e-5)
        assert each["norm"] ** 2 == pytest.approx(sum(value**2 for value in each["spectrum"]), rel=1e-4)
        assert 1 <= each["effective_rank"] <= min(values.shape)
    with pytest.raises(UsageError, match="393,216 bytes, more than --max-bytes 1,000"):
        next(matrices(report(path), max_bytes=1000))


def test_explore_quantised_matrices(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    for name, kind in (("attn_q", gguf.GGMLQuantizationType.Q8_0), ("attn_k", gguf.GGMLQuantizationType.Q4_0)):
        writer.add_tensor(f"blk.0.{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.add_uint32("llama.block_count", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    query, key = matrices(report(tmp_path / "q.gguf"))
    assert (query.type, key.type) == ("Q8_0", "Q4_0")
    assert query.norm == pytest.approx(float(np.linalg.norm(values)), rel=0.01)
    assert key.norm == pytest.approx(float(np.linalg.norm(values)), rel=0.1)


def test_explore_cache(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "tiny", "cache", "--longest", "512", *ONE)
    assert found["unchanged"]["on_later_tokens"] == 0
    assert found["unchanged"]["largest_difference"] < 1e-2
    assert [row["tokens"] for row in found["next_token"]] == list(range(64, 513, 64))
    last = found["next_token"][-1]
    assert last["without_cache_s"] > 5 * last["with_cache_s"]  # 512 tokens computed for one


def test_explore_what_if(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {each["name"]: each for each in document(capsys, "tiny", "what-if")["variants"]}
    assert {name: each["kv_heads"] for name, each in found.items()} == {"MHA": 8, "GQA of 4": 2, "MQA": 1}
    own = found["GQA of 4"]
    assert own["own"]
    assert own["cache_bytes"][0] == 1024 * 3 * 2 * (32 + 32) * 2
    assert found["MHA"]["cache_bytes"][0] == 4 * own["cache_bytes"][0]
    weights = report(explore.tiny_model()).shape
    assert weights is not None
    assert weights.weights is not None
    assert own["read_bytes"][0] == own["cache_bytes"][0] + weights.weights.active_bytes


def test_explore_report_is_self_contained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "tiny", "-o", "report.html", "--longest", "64", *ONE).strip() == "report.html"
    page = (here / "report.html").read_text()
    for title in ("Structure", "What the heads do", "Attention", "Keys by group", "Q, K, V and O", "Why a KV cache",
                  "What if"):  # fmt: skip
        assert f"<h2>{title}" in page
    assert "the cup is red .&lt;|end|&gt;" in page
    assert page.count("data:image/png;base64,") >= 10
    assert not re.search(r'(src|href)=(?!"data:)', page)
    assert "<script" not in page


def test_explore_report_of_other_models(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_strong(here, "jamba")
    run(capsys, str(path), "-o", "report.html", "--longest", "0", "-p", "hello there", *ONE)
    assert "has no map: recurrent" in (here / "report.html").read_text()
    mamba = write_strong(here, "mamba")
    assert "layer 0 has no attention map: recurrent" in run(capsys, str(mamba), "heads", *ONE)
    run(capsys, str(mamba), "-o", "mamba.html", "--longest", "0", "-p", "hello there", *ONE)
    assert "Layer 0 has no map: recurrent" in (here / "mamba.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.gguf"], "there is no such file"),
        (["models"], "models holds several models; name one of: models/a.gguf, models/b.gguf"),
        (["tiny", "heads", "--layers", "7"], "has layers 0 to 2, not 7"),
        (["tiny", "heads", "--layers", "x"], "--layers takes numbers and ranges"),
        (["tiny", "attention", "--rows", "5"], "--rows takes FROM-TO"),
        (["tiny", "attention", "--max-bytes", "100"], r"needs [\d,]+ bytes"),
        (["tiny", "attention", "--json"], "attention prints no table"),
        (["tiny", "attention", "-o", "none/such.png"], "there is no folder none"),
        (["tiny", "keys", "--token", "99"], "not 99"),
        (["tiny", "heads", "--prompt", "a", "--repeat", "4"], "not both"),
    ],
)
def test_explore_errors_are_one_line(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "models").mkdir()
    for name in ("a", "b"):
        (here / "models" / f"{name}.gguf").write_bytes(tiny_model().read_bytes())
    assert main(["explore", *arguments]) == 2
    shown = capsys.readouterr()
    assert re.search(message, shown.err)
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_explore_incomplete_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "cut.gguf").write_bytes(tiny_model().read_bytes()[:200_000])
    assert main(["explore", "cut.gguf", "heads"]) == 1
    shown = capsys.readouterr().err
    assert re.fullmatch(r"llamatel: error: cut.gguf: [\d,]+ bytes of the tensors' data are missing: .*\n", shown)
    assert main(["explore", "cut.gguf", "structure", "--out", "."]) == 0
    assert "cut_grouping.png" in capsys.readouterr().out
