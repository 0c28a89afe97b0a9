"""Values of llama-server's flags by kind: text to settings and back, by llama-server's rules (common/arg.cpp)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llamatel.flags.cache_types import CACHE_TYPES
from llamatel.flags.server_settings import SPEC_TYPES, SPLIT_MODES
from llamatel.flags.tensor_override import DENSE, EXPERTS, TensorOverride

ALL_LAYERS = 1 << 20
"""``-ngl all``: more than any model has."""
TRUE, FALSE = ("on", "enabled", "true", "1"), ("off", "disabled", "false", "0")


class InvalidValue(ValueError):
    """A value that llama-server refuses or misreads; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value. ``parse`` raises ValueError, or InvalidValue for a message beyond ``accepts``."""

    parse: Callable[[str], Any]
    accepts: str
    """What it accepts, for a message."""
    text: Callable[[Any], str] = str
    appends: bool = False
    """Repeated flags add to a tuple; else the last one counts."""


def _int(text: str) -> int:
    """A number as std::stoi reads it, except that trailing letters, which llama-server ignores, are refused."""
    if not re.fullmatch(r"\s*[+-]?\d{1,12}", text):
        if found := re.match(r"\s*[+-]?\d{1,12}", text):
            raise InvalidValue(f"llama-server reads it as {int(found[0])}: write the whole number")
        raise ValueError
    number = int(text)
    if not -(2**31) <= number < 2**31:
        raise ValueError
    return number


def _slots(text: str) -> int | None:
    number = _int(text)
    if number == 0:
        raise ValueError
    return number if number > 0 else None


def _layers(text: str) -> int | None:
    if text in ("auto", "all"):
        return ALL_LAYERS if text == "all" else None
    number = _int(text)
    return number if number >= 0 else None if number == -1 else ALL_LAYERS


def _layers_text(layers: int | None) -> str:
    return "auto" if layers is None else "all" if layers >= ALL_LAYERS else str(layers)


def _bool(text: str) -> bool:
    if text not in TRUE + FALSE:
        raise ValueError
    return text in TRUE


def _flash(text: str) -> str:
    return "auto" if text in ("auto", "-1") else "on" if _bool(text) else "off"


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return parse


def _shares(text: str) -> tuple[float, ...]:
    shares = tuple(float(share) for share in re.split("[,/]+", text))
    if not all(0 <= share < float("inf") for share in shares):
        raise ValueError
    return shares


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_int(number) for number in re.split("[,/]+", text))


def _spec_types(text: str) -> tuple[str, ...]:
    words = text.split(",")
    if not set(words) <= set(SPEC_TYPES):
        raise ValueError
    return tuple(word for word in words if word != "none")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not all(names):
        raise ValueError
    return names


def _overrides(text: str) -> tuple[TensorOverride, ...]:
    """``pattern=buffer type`` pairs (parse_tensor_buffer_overrides)."""
    overrides = []
    for part in text.split(","):
        pattern, equals, buffer = part.partition("=")
        if not equals or not buffer:
            raise ValueError
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidValue(f"'{pattern}' is not a regular expression: {error}") from None
        overrides.append(TensorOverride(pattern, buffer))
    return tuple(overrides)


def _of_first_blocks(pattern: str) -> Callable[[str], tuple[TensorOverride, ...]]:
    """Tensors of the first N blocks on the host (llm_add_n_cpu_ffn_overrides)."""

    def parse(text: str) -> tuple[TensorOverride, ...]:
        number = _int(text)
        if number < 0:
            raise ValueError
        return (TensorOverride(pattern, first_blocks=number),)

    return parse


def _overrides_text(overrides: tuple[TensorOverride, ...]) -> str:
    return " ".join(override.flag for override in overrides)


_SHARES = Kind(_shares, "shares, as in 3,1", lambda shares: ",".join(f"{share:g}" for share in shares))
_NAMES = Kind(_names, "names with commas between them", ",".join)
_MAX_VERBOSITY = 2**31 - 1

KINDS: dict[str, Kind] = {
    "switch": Kind(_bool, "on or off", lambda value: str(value).lower()),
    "on/off": Kind(_bool, "on or off", lambda value: "on" if value else "off"),
    "on/off/auto": Kind(_flash, "on, off or auto"),
    "int": Kind(_int, "a whole number below 2^31"),
    "slots": Kind(_slots, "a number of slots", lambda slots: str(-1 if slots is None else slots)),
    "layers": Kind(_layers, "a number of layers, auto or all", _layers_text),
    "text": Kind(str, "text"),
    "cache-type": Kind(_one_of(*CACHE_TYPES), f"one of {', '.join(CACHE_TYPES)}"),
    "split-mode": Kind(_one_of(*SPLIT_MODES), f"one of {', '.join(SPLIT_MODES)}"),
    "spec-types": Kind(_spec_types, f"one of {', '.join(SPEC_TYPES)}", lambda types: ",".join(types) or "none"),
    "ngram-mod": Kind(lambda _: ("ngram-mod",), "nothing", ",".join, appends=True),
    "shares": _SHARES,
    "mibs": Kind(_numbers, "MiB, one for all devices or one each", lambda sizes: ",".join(map(str, sizes))),
    "names": _NAMES,
    "files": Kind(_names, "names with commas between them", ",".join, appends=True),
    "scaled-files": Kind(
        lambda text: _names(re.sub(r":[^:,]*(?=,|$)", "", text)), "FILE:SCALE", ",".join, appends=True
    ),
    "overrides": Kind(_overrides, "pattern=buffer type, as in exps=CPU", _overrides_text, appends=True),
    "cpu-moe": Kind(lambda _: (TensorOverride(EXPERTS),), "nothing", _overrides_text, appends=True),
    "n-cpu-moe": Kind(_of_first_blocks(EXPERTS), "a number of blocks", _overrides_text, appends=True),
    "n-cpu-ffn": Kind(_of_first_blocks(DENSE), "a number of blocks", _overrides_text, appends=True),
    "verbose": Kind(lambda _: _MAX_VERBOSITY, "nothing"),
}
