"""ServerSettings from llama-server's command line and its ``LLAMA_ARG_*`` variables, and back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from llamatel.errors import UsageError
from llamatel.flags.flag_table import BY_NAME, FLAGS, Flag, flag_of
from llamatel.flags.flag_values import KINDS, TRUE, InvalidValue
from llamatel.flags.server_settings import ServerSettings

_DEFAULTS = ServerSettings()
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")
_DESCRIBED = {
    field.name: flag_of(field.name)
    for field in fields(_DEFAULTS)
    if any(flag.setting == field.name and flag.role in ("plan", "not counted") for flag in FLAGS)
}


class _Reading:
    """Settings while they are parsed."""

    def __init__(self, *, lenient: bool) -> None:
        self.lenient = lenient
        self.values: dict[str, Any] = {}
        self.not_counted: list[str] = []
        self.unknown: list[str] = []
        self.not_understood: list[str] = []

    def flag(self, flag: Flag, name: str, text: str) -> None:
        """A flag or variable ``name`` with its value; of a switch "on" or "off"."""
        if flag.role == "removed" and not self.lenient:
            raise UsageError(f"llama-server has no {name}: the argument has been removed, see llama-server --help")
        if flag.role == "not counted":
            self.not_counted.append(name)
        if flag.setting is None or flag.kind is None:
            return
        kind = KINDS[flag.kind]
        try:
            value = kind.parse(text)
            if self.lenient and flag.kind == "overrides" and not all(override.is_cheap for override in value):
                raise ValueError
        except ValueError as error:
            if not self.lenient:
                why = str(error) if isinstance(error, InvalidValue) else kind.accepts
                raise UsageError(f"{name} does not take '{text}' ({why})") from None
            self.not_understood.append(name)
            return
        if kind.appends:
            value = (*self.values.get(flag.setting, getattr(_DEFAULTS, flag.setting)), *value)
        self.values[flag.setting] = value

    def settings(self) -> ServerSettings:
        """The parsed settings."""
        return ServerSettings(
            **self.values,
            given=frozenset(self.values),
            not_counted=tuple(dict.fromkeys(self.not_counted)),
            unknown=tuple(dict.fromkeys(self.unknown)),
            not_understood=tuple(dict.fromkeys(self.not_understood)),
        )


def parse_server_flags(
    words: Sequence[str], environ: Mapping[str, str] = os.environ, *, lenient: bool = False
) -> ServerSettings:
    """Settings from llama-server's command line and environment, as llama-server reads them.

    Raises UsageError for what llama-server would refuse: a value, or a word that is no flag. ``lenient`` is for the
    command line of a running server, maybe of another build: unknown flags and values are listed, not raised.
    """
    reading = _Reading(lenient=lenient)
    _read_environment(reading, environ)
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        name = word.replace("_", "-") if word.startswith("--") else word  # as common_params_parse does
        flag = BY_NAME.get(name)
        if flag is None:
            _check_unknown(word, lenient=lenient)
            reading.unknown.append(word)
            # It may have a value.
            i += i < len(words) and not words[i].startswith("-")
            continue
        if i + flag.values > len(words) and not lenient:
            raise UsageError(f"{name} needs a value")
        switched = "off" if name in flag.negated else "on"
        reading.flag(flag, name, "".join(words[i : i + 1]) if flag.values else switched)
        i += flag.values
    return reading.settings()


def without_uncounted(settings: ServerSettings, field: str) -> ServerSettings:
    """The settings, with the other flags and variables of a field in ``not_counted``, too."""
    flags = [flag for flag in FLAGS if flag.setting == field]
    names = {name for flag in flags for name in (*flag.names, flag.variable)}
    return replace(settings, not_counted=tuple(name for name in settings.not_counted if name not in names))


def _read_environment(reading: _Reading, environ: Mapping[str, str]) -> None:
    """``LLAMA_ARG_*``, which llama-server reads before its command line."""
    for flag in FLAGS:
        if flag.off_variable is not None and flag.off_variable in environ:
            reading.flag(flag, flag.off_variable, "off")
        elif flag.variable is None or (text := environ.get(flag.variable)) is None:
            continue
        elif flag.values or flag.negated or text in TRUE:  # a switch without a negation ignores other values
            reading.flag(flag, flag.variable, text)


def _check_unknown(word: str, *, lenient: bool) -> None:
    """Raise UsageError for a word that no build of llama-server accepts as a flag."""
    if lenient:
        return
    name, equals, _ = word.partition("=")
    if equals and name in BY_NAME:
        raise UsageError(f"error: invalid argument: {word} (llama-server wants {name} and the value as two words)")
    if not re.match(r"--?[A-Za-z]", word):
        raise UsageError(f"{word!r} belongs to no flag of llama-server's: leave it out")


def given_flags(settings: ServerSettings) -> dict[str, str]:
    """The settings that were given, by the long names of their flags without dashes; a switch is "true" or "false".

    For display and metric labels, without those that only matter for starting or reaching the server.
    """
    shown: dict[str, str] = {}
    for flag in FLAGS:
        if flag.setting in settings.given and flag.role in ("plan", "not counted", "behaviour") and flag.kind:
            value = getattr(settings, str(flag.setting))
            if value is not None or flag.kind in ("layers", "slots"):
                name = flag_of(str(flag.setting)).long_name[2:]
                shown[name] = KINDS[flag.kind].text(value)
    return shown


def describe(settings: ServerSettings) -> str:
    """The settings that differ from the defaults, as llama-server's flags."""
    return " ".join(_described(settings))


def _described(settings: ServerSettings) -> Iterator[str]:
    for name, flag in sorted(_DESCRIBED.items(), key=lambda item: item[1].values == 0):
        value = getattr(settings, name)
        if value == getattr(_DEFAULTS, name) or name in ("model", "hf_file"):
            continue
        kind = KINDS[str(flag.kind)]
        if flag.values == 0 and not kind.appends:
            yield min(flag.names if value else flag.negated, key=len)
        elif kind.appends and flag.kind != "files":
            yield kind.text(value)
        elif name == "draft_model":
            yield f"{'-hfd' if _HUB.fullmatch(value) and not value.endswith('.gguf') else '-md'} {value}"
        else:
            yield f"{min(flag.names, key=len)} {kind.text(value)}"


def settings_as_dict(settings: ServerSettings) -> dict[str, Any]:
    """For JSON: the settings that a plan depends on."""
    plain = {name: getattr(settings, name) for name in _DESCRIBED}
    texts = {name: KINDS["overrides"].text(plain[name]) for name in plain if name.endswith("tensor_overrides")}
    return plain | texts
