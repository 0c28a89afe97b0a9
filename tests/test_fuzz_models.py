"""The fuzz targets of model files, configurations and the Hub's responses, some hundred inputs each."""

from __future__ import annotations

import random

import pytest

from tests.fuzz import gguf_header, hub_response, model_config


@pytest.mark.parametrize(("name", "inputs"), [("gguf_header", 60), ("hub_response", 400), ("model_config", 250)])
def test_fuzz_structured_inputs(name: str, inputs: int) -> None:
    target = {"gguf_header": gguf_header, "hub_response": hub_response, "model_config": model_config}[name]
    dice = random.Random(20261126)
    valid = [] if name == "gguf_header" else target.corpus()
    read = sum(target.check(target.structured(dice, valid)) for _ in range(inputs))
    assert read > 0


@pytest.mark.parametrize("target", [hub_response, model_config])
def test_fuzz_truncated_inputs(target: object) -> None:
    dice = random.Random(20261126)
    for data in dice.sample(target.corpus(), 2):  # type: ignore[attr-defined]
        for _ in range(60):
            cut = dice.randrange(len(data))
            target.check(data[:cut])  # type: ignore[attr-defined]
            target.check(data[:cut] + dice.randbytes(4) + data[cut:])  # type: ignore[attr-defined]
