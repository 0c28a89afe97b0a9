"""Properties of the parser of the Hub's repository descriptions, for any bytes."""

from __future__ import annotations

import json
import random
from typing import Any

from llamatel.errors import GGUFError
from llamatel.gguf.hub import Hub, resolve
from llamatel.gguf.model_choices import Choices, choices_among
from llamatel.inputs.http import Response
from tests.fuzz.target import Broken

_NAMES = (
    "model-Q4_K_M.gguf", "model.mmproj-Q8_0.gguf", "UD-Q2_K_XL/x-UD-Q2_K_XL-00001-of-00002.gguf", "config.json", "",
    "x-00002-of-00001.gguf", "x-00001-of-99999.gguf", "../x.gguf", "mtp-x.gguf", "a\u0000b.gguf", "\ud800.gguf",
    "x" * 2000, "preset.ini", ".gguf", "-.gguf", "Q8_0.gguf", "((((a+)+)+)+-Q8_0.gguf",
)  # fmt: skip
_TAGS = ("Q4_K_M", "Q8_0", "UD-Q2_K_XL", ".", "-", "x" * 100, "Q4.K", "....")
_ODD: tuple[Any, ...] = (None, True, 0, -1, 1 << 70, 0.5, "", "x", [], {}, [[]], {"rfilename": "x.gguf"})


def corpus() -> list[bytes]:
    """Descriptions in the Hub's format."""
    siblings = [{"rfilename": name, "size": number} for number, name in enumerate(_NAMES)]
    documents: list[object] = [
        {"id": "org/repo", "siblings": siblings, "safetensors": {"total": 5}},
        {"siblings": [{"rfilename": "model.gguf"}]},
        {"error": "not found"},
    ]
    return [json.dumps(document).encode() for document in documents]


def structured(dice: random.Random, valid: list[bytes]) -> bytes:
    """A description with invalid entries."""
    document: dict[str, Any] = json.loads(dice.choice(valid))
    names = [dice.choice(_NAMES) for _ in range(dice.randrange(12))]
    sizes = (5, None, -1, "5", 1 << 70)
    files = [{"rfilename": name, "size": dice.choice(sizes)} for name in names]
    document["siblings"] = [dice.choice(_ODD) if dice.random() < 0.2 else each for each in files]
    if dice.random() < 0.3:
        document[dice.choice(("siblings", "safetensors", "id"))] = dice.choice(_ODD)
    return json.dumps(document).encode()


def check(data: bytes) -> bool:
    """Raise unless ``data`` is a repository or refused in one line; True if it was one."""
    hub = Hub("http://127.0.0.1:9")
    try:
        repository = hub.described("org/repo", Response(200, {}, data, hub.endpoint))
    except GGUFError as error:
        if "\n" in str(error):
            raise Broken(f"not one line: {error!r}") from error
        return False
    found = choices_among(repository.files)
    choices = Choices("org/repo", found, remote=True)
    for each in found:
        if ".." in each.path.split("/") or not choices.reference(each):
            raise Broken(f"a path that leads elsewhere: {each.path!r}")
    if "\n" in choices.question:
        raise Broken("not one line")
    for tag in (None, *_TAGS):
        for as_server in (False, True):
            try:
                chosen = resolve("org/repo", repository, found, tag, as_server)
            except GGUFError as error:
                if "\n" in str(error):
                    raise Broken(f"not one line: {error!r}") from error
                continue
            if chosen not in found:
                raise Broken("a choice that is not there")
    return True
