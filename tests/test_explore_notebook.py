"""The explorer's notebook, executed as Jupyter's "Run all" would."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebooks import run_notebook

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "attention_explorer.ipynb"


@pytest.mark.slow
def test_explore_notebook_runs(llama_cpp: None, tmp_path: Path) -> None:
    ran = run_notebook(NOTEBOOK, tmp_path, {"OMP_NUM_THREADS": "1"}, timeout_s=280)
    assert len(ran.shown("image/png")) == 9
    assert "the cup is red .<|end|>" in ran.text
    assert "layer 1, head" in ran.text
    assert "on_later_tokens=0.0" in ran.text
    assert (tmp_path / "tiny_layer_0_gqa_keys.png").exists()
