"""Presets: settings for common machines, computed so that the model fits; an error if it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llamatel.errors import UsageError
from llamatel.flags.server_settings import ServerSettings
from llamatel.plan.devices import Device, parse_devices
from llamatel.plan.fit_search import balanced, largest_context
from llamatel.plan.memory_plan import memory_plan, uncounted
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.plan_report import make_report

ENOUGH_CONTEXT = 32768
"""Context in tokens that a larger cache type has to reach to be preferred to a smaller one."""
_TYPES = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True, slots=True)
class Preset:
    """A machine."""

    name: str
    devices: str
    """As for ``--device``."""
    about: str


PRESETS = {
    preset.name: preset
    for preset in (Preset("kaggle-t4x2", "t4x2", "the two Tesla T4 of a Kaggle notebook, 15 GiB each"),)
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """The settings of a preset for one model."""

    settings: ServerSettings
    longest: int
    """The largest context that would fit."""
    devices: tuple[Device, ...]


def choose(preset: Preset, name: str, shape: ModelShape, given: ServerSettings) -> Chosen:
    """All layers on the cards, split so that the fuller card has the most room, with the largest context that fits.

    ``given``: the caller's settings, which are kept. The cache type is the first with which ``ENOUGH_CONTEXT`` tokens,
    or the model's full context, fit. Raises UsageError with advice if the model does not fit.
    """
    devices = tuple(parse_devices(preset.devices))
    if shape.weights is None or shape.context_length is None:
        raise UsageError(
            f"--preset {preset.name}: {name} does not state its size or context length, so it cannot be planned"
        )
    if uncounted(given):  # its memory is unknown, so nothing is refused
        whole = given if "gpu_layers" in given.given else replace(given, gpu_layers=len(shape.layers) + 1)
        return Chosen(whole, 0, devices)
    wanted = given.ctx_size or shape.context_length
    found: list[Chosen] = []
    for settings in _variants(given):
        whole = replace(settings, gpu_layers=len(shape.layers) + 1, ctx_size=wanted)
        split = balanced(shape, whole, devices)
        longest = largest_context(shape, split, devices)
        if longest is None:
            continue
        if not given.ctx_size:
            split = replace(split, ctx_size=min(longest, wanted))
        if memory_plan(shape, split, devices).fits:
            found.append(Chosen(split, longest, devices))
    enough = next((each for each in found if (each.settings.ctx_size or 0) >= min(wanted, ENOUGH_CONTEXT)), None)
    best = enough or max(found, key=lambda each: each.settings.ctx_size or 0, default=None)
    if best is None:
        advice = make_report(name, shape, replace(given, gpu_layers=len(shape.layers) + 1), devices).advice
        raise UsageError(f"--preset {preset.name}: {name} {'; '.join(advice) or 'does not fit'}")
    return best


def _variants(given: ServerSettings) -> Iterator[ServerSettings]:
    flash = given if "flash_attn" in given.given else replace(given, flash_attn="on")
    if not given.given.isdisjoint(("cache_type_k", "cache_type_v")):
        yield flash
        return
    for kind in _TYPES if flash.flash_attn != "off" else _TYPES[:1]:
        yield replace(flash, cache_type_k=kind, cache_type_v=kind)
