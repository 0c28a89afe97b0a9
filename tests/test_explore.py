"""The explorer: attention heads of the shipped model, refused captures, callback errors, crashes of the child."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from llamatel import explore
from llamatel.errors import ExploreError, UsageError
from llamatel.explore import ggml
from llamatel.explore.explore_request import bytes_needed
from llamatel.explore.explore_session import Session, bindings
from llamatel.explore.tensor_observer import Observer
from tests.explored import TEXT, captured, write_strong
from tests.tiny_gguf import write_tiny_model
from training import language

pytestmark = pytest.mark.usefixtures("llama_cpp")

SHIPPED = explore.tiny_model()


def best(scores: tuple[explore.HeadScores, ...], what: str) -> float:
    return max(float(getattr(score, what)) for score in scores)


def test_explore_tiny_induction_and_previous_token_heads() -> None:
    scores = explore.head_scores(captured(SHIPPED, tokens=None, repeat=32, cache_type="f16"))
    assert best(scores, "induction") > 0.7
    assert best(scores, "previous") > 0.6
    assert best(scores, "first") > 0.5
    kinds = {(score.layer, score.kind) for score in scores}
    assert {(0, "previous"), (0, "first"), (0, "current"), (1, "induction")} <= kinds
    # Induction needs the layer before it.
    assert max(score.induction or 0 for score in scores if score.layer == 0) < 0.1


def test_explore_random_weights_no_induction(tmp_path: Path) -> None:
    scores = explore.head_scores(captured(write_tiny_model(tmp_path / "random.gguf"), tokens=None, repeat=32))
    assert best(scores, "induction") < 0.1
    assert best(scores, "previous") < 0.1
    assert {score.kind for score in scores} <= {"uniform", "mixed"}


def test_explore_induction_unknown_without_repetition() -> None:
    [*scores] = explore.head_scores(captured(SHIPPED, tokens=tuple(range(300, 324))))
    assert {score.induction for score in scores} == {None}
    assert all(score.previous is not None for score in scores)


def test_explore_tiny_generates_its_language() -> None:
    random = Random(2026)
    right = dict.fromkeys((make.__name__ for make in language.QUESTIONS), 0)
    with Session(str(SHIPPED)) as session, session.context(256, threads=1) as context:
        end = session.tokenize(language.END)[-1]
        for make in language.QUESTIONS * 10:
            question = make(random)
            tokens = list(session.tokenize(session.chat(question.text)))
            n_prompt = len(tokens)
            context.forget()
            new = tokens
            while len(tokens) < n_prompt + 40:
                context.decode(new)
                new = [context.likeliest(session.vocabulary)]
                if new == [end]:
                    break
                tokens += new
            right[make.__name__] += "".join(map(session.text, tokens[n_prompt:])).strip() == question.answer
    assert right["colour"] >= 7
    assert right["count"] >= 7
    assert right["repeat"] >= 6


def test_capture_selects_layer_head_row(tmp_path: Path) -> None:
    path = write_strong(tmp_path, "llama")
    whole = captured(path)
    part = captured(path, layers=(1, 3), heads=(2, 0), rows=(5, 9))
    assert sorted(part.layers) == [1, 3]
    assert part.rows == range(5, 9)
    for index in (1, 3):
        expected = whole.layer(index).weights[[2, 0], 5:9]
        assert np.array_equal(part.layer(index).weights, expected)
        assert np.array_equal(part.layer(index).head(0), expected[1])
        assert np.array_equal(part.layer(index).visible, whole.layer(index).visible[5:9])
    with pytest.raises(UsageError, match="no captured head 1"):
        part.layer(1).head(1)
    with pytest.raises(UsageError, match="layer 0 of llama has no attention map: it was not captured; there are 1, 3"):
        part.layer(0)
    late = captured(path, tokens=TEXT[:20], generate=4, rows=(20, 24))
    assert late.layer(2).weights.shape == (4, 4, 24)
    early = captured(path, tokens=TEXT[:20], generate=4, rows=(0, 3))
    assert early.layer(2).weights.shape == (4, 3, 24)
    assert early.layer(2).keys.shape[1] == 24


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"layers": (7,)}, "has layers 0 to 3, not 7"),
        ({"heads": (4,)}, "has heads 0 to 3, not 4"),
        ({"rows": (30, 40)}, "there are 24 tokens, and no row 30"),
        ({"rows": (4, 4)}, "rows are FROM-TO"),
        ({"cache_type": "q8_0"}, "f16 or f32"),
        ({"chat": True, "tokens": None, "prompt": "hello"}, "no chat template"),
        ({"max_bytes": 1000}, r"needs [\d,]{7,} bytes .*more than --max-bytes 1,000: choose fewer --layers"),
    ],
)
def test_capture_refusals_are_one_line(how: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        captured(write_strong(tmp_path, "llama"), **how)
    assert "\n" not in str(raised.value)


def test_capture_announced_bytes(tmp_path: Path) -> None:
    path = write_strong(tmp_path, "llama")
    run = captured(path)
    with Session(str(path)) as session:
        request = explore.CaptureRequest(model=str(path))
        needed = bytes_needed(request, session.shape, len(TEXT))
    layers = run.layers.values()
    assert needed.weights == sum(layer.weights.nbytes for layer in layers)
    assert needed.queries == sum(layer.queries.nbytes for layer in layers)
    assert needed.keys_values == sum(layer.keys.nbytes + layer.values.nbytes + layer.visible.nbytes for layer in layers)


def test_observer_callback_errors_stay_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in a callback")

    path = write_strong(tmp_path, "llama")
    with monkeypatch.context() as patched:
        patched.setattr(ggml.Ggml, "read", fail)
        with pytest.raises(ZeroDivisionError, match="in a callback"):
            captured(path)
    with Session(str(path)) as session:
        observer = Observer(session.ggml, frozenset(range(4)))
        with monkeypatch.context() as patched:
            patched.setattr(ggml.Ggml, "name", fail)
            with session.context(32, observer=observer, threads=1) as context:
                context.decode(TEXT)
    assert isinstance(observer.failure, ZeroDivisionError)
    assert captured(path).layers


class Shifted(ctypes.Structure):
    """As large as ``struct ggml_tensor``, with lengths and strides swapped."""


_SHIFTED: Any = [
    (name, {"src": ctypes.POINTER(Shifted) * 10, "view_src": ctypes.POINTER(Shifted)}.get(name, kind))
    for name, kind in (({"ne": "nb", "nb": "ne"}.get(name, name), kind) for name, kind, *_ in ggml.Tensor._fields_)
]
Shifted._fields_ = _SHIFTED


def test_ggml_other_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = bindings()._lib
    monkeypatch.setattr(ggml, "_Pointer", ctypes.POINTER(Shifted))
    with pytest.raises(ExploreError, match=r"lays its tensors out in another way \(ne, nb.*pip install"):
        ggml.Ggml(library)
    monkeypatch.undo()
    monkeypatch.setattr(
        ggml, "Tensor", type("Longer", (ctypes.Structure,), {"_fields_": [("more", ctypes.c_int * 99)]})
    )
    with pytest.raises(ExploreError, match=r"another way \(size\)"):
        ggml.Ggml(library)
    monkeypatch.undo()
    with pytest.raises(ExploreError, match="lacks ggml_init"):
        ggml.Ggml(ctypes.CDLL(None))
    ggml.Ggml(library)


def test_capture_save_and_load(tmp_path: Path) -> None:
    run = captured(SHIPPED, tokens=None, prompt="the red fox", layers=(1,))
    again = explore.Capture.load(run.save(tmp_path / "run.npz"))
    assert (again.texts, again.rows, again.missing) == (run.texts, run.rows, run.missing)
    assert again.texts == ("<|begin|>", "the", " red", " fox")
    for name in ("weights", "queries", "keys", "values", "visible"):
        assert np.array_equal(getattr(again.layer(1), name), getattr(run.layer(1), name))


def test_explore_child_same_result_and_progress() -> None:
    steps: list[tuple[str, int, int]] = []
    run = explore.capture(
        SHIPPED,
        "count from three to six .",
        chat=True,
        generate=6,
        threads=1,
        progress=lambda *step: steps.append(step),
    )
    assert run.generated == "three four five six .<|end|>"
    assert steps[0] == ("loading the model", 0, 1)
    assert steps[-1] == ("decoding", 7, 7)
    here = captured(SHIPPED, tokens=run.token_ids, cache_type="f16")
    assert np.abs(here.layer(2).weights - run.layer(2).weights).max() < 1e-2


def test_explore_child_crash_and_refusal(tmp_path: Path) -> None:
    def abort(*_: object) -> None:
        for child in Path("/proc/self/task").glob("*/children"):
            for number in child.read_text().split():
                if b"llamatel.explore.explore_child" in Path(f"/proc/{number}/cmdline").read_bytes():
                    os.kill(int(number), signal.SIGABRT)

    with pytest.raises(ExploreError, match=r"llama.cpp exited \(signal 6\): "):
        explore.capture(SHIPPED, repeat=8, generate=200, threads=1, progress=abort)
    with pytest.raises(UsageError, match="has layers 0 to 2, not 9"):
        explore.capture(SHIPPED, "hello", layers=(9,))
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(ExploreError, match=r"no\.gguf"):
        explore.capture(tmp_path / "no.gguf", "hello")
