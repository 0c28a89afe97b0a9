"""``serve --preset``: the plan's choice for a machine, and refusals before the server starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llamatel.cli.main import main
from llamatel.cli.preset_option import with_preset
from llamatel.errors import UsageError
from llamatel.plan import LayerShape, ModelShape, ServerSettings
from llamatel.plan.memory_plan import memory_plan
from llamatel.plan.model_shape import Weights
from llamatel.plan.presets import PRESETS, Chosen, choose

T4X2 = PRESETS["kaggle-t4x2"]
GIB = 1 << 30


def model(gib: float, layers: int = 32, context: int = 131072) -> ModelShape:
    """A model like Llama 3.1 8B, of another size."""
    block = int(gib * GIB / layers)
    return ModelShape(
        "llama",
        tuple(LayerShape(i, heads=32, kv_heads=8, key_length=128, value_length=128) for i in range(layers)),
        context_length=context,
        embedding_length=4096,
        feed_forward_length=14336,
        verified=True,
        weights=Weights(
            n_bytes=block * layers, parameters=1, active_parameters=1, active_bytes=1, layer_bytes=(block,) * layers
        ),
    )


def chosen(shape: ModelShape, *names: str, **given: object) -> Chosen:
    return choose(T4X2, "m.gguf", shape, dataclasses.replace(ServerSettings(), given=frozenset(names), **given))  # type: ignore[arg-type]


@pytest.mark.parametrize(("gib", "kind"), [(5, "f16"), (16, "f16"), (25, "q8_0"), (27, "q4_0")])
def test_preset_cache_type_by_model_size(gib: float, kind: str) -> None:
    shape = model(gib)
    found = chosen(shape)
    settings = found.settings
    assert (settings.cache_type_k, settings.cache_type_v, settings.flash_attn) == (kind, kind, "on")
    assert settings.gpu_layers == 33
    assert settings.ctx_size == min(found.longest, 131072)
    assert memory_plan(shape, settings, found.devices).fits
    more = dataclasses.replace(settings, ctx_size=found.longest + 1024)
    assert found.longest >= 131072 or not memory_plan(shape, more, found.devices).fits


def test_preset_keeps_given_settings() -> None:
    found = chosen(model(5), "cache_type_k", "cache_type_v", cache_type_k="q4_0", cache_type_v="q4_0", ctx_size=8192)
    assert (found.settings.cache_type_k, found.settings.ctx_size) == ("q4_0", 8192)
    assert found.longest > 8192
    split = chosen(model(5), tensor_split=(3.0, 1.0))
    assert split.settings.tensor_split == (3.0, 1.0)


@pytest.mark.parametrize("shape", [model(60), dataclasses.replace(model(5), weights=None)])
def test_preset_refuses_too_large_model(shape: ModelShape) -> None:
    with pytest.raises(UsageError, match="kaggle-t4x2"):
        chosen(shape)


def test_preset_command_adds_missing_arguments_only(tiny_model: Path) -> None:
    arguments, summary = with_preset(
        "kaggle-t4x2", str(tiny_model), {"n_parallel": 2, "flash_attn": "auto"}, ["-c", "512"]
    )
    assert arguments.pop("tensor_split") in ("1,2", "2,1")
    assert arguments == {
        "n_parallel": 2, "flash_attn": "auto", "gpu_layers": 3, "cache_type_k": "f16", "cache_type_v": "f16",
    }  # fmt: skip
    assert summary.startswith("llamatel: kaggle-t4x2 (2 x Tesla T4): ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--preset", "kaggle-t4x2", "-c", "999999999"], "does not fit on 2 x Tesla T4"),
        (["--preset", "dgx"], "there is no preset 'dgx': use kaggle-t4x2"),
    ],
)
def test_preset_refusal_is_one_line(
    words: list[str], expected: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tiny_model), *words, "--backend", "/nowhere/llama-server"]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
