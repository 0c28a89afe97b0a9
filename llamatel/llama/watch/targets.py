"""Which servers to attach to: addresses, files with one address a line, and Prometheus's file discovery.

A file whose name ends in .json, .yml or .yaml is a list as Prometheus's ``file_sd_configs`` has it::

    [{"targets": ["10.0.0.1:8080"], "labels": {"env": "prod", "__scheme__": "https"}}]

Labels are kept on the server's series and spans. ``__scheme__`` and ``__api_key_file__`` have a meaning here; others
that start with two underscores are ignored.
"""

from __future__ import annotations

import logging
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamatel.errors import UsageError
from llamatel.inputs.address import Address, parse_address
from llamatel.inputs.documents import InvalidDocument, parse_json, parse_yaml
from llamatel.inputs.text_file import read_text, user_path
from llamatel.outputs.log_once import LogOnce
from llamatel.records import Labels, ServerInfo

_log = logging.getLogger(__name__)

_MAX_TARGETS = 4096
"""Most targets: bounds a discovery that returns far too many."""
_MAX_LABELS = 32
_LONGEST_VALUE = 256
_LONGEST_SHOWN = 12
"""Characters of a wrong name in a message: a longer one may be a secret."""
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_OWN = frozenset({"server_address", "server_port", "server_path", "gen_ai_request_model"})


@dataclass(frozen=True, slots=True)
class Target:
    """One server to attach to."""

    url: str
    """``http://host:port``, perhaps with a path in front of llama.cpp's own, or ``unix:///path``."""
    api_key_file: str | None = None
    """Its own key file; None: the common one."""
    labels: Labels = ()

    @property
    def location(self) -> Address:
        """Its parsed address."""
        return parse_address(self.url)

    @property
    def address(self) -> str:
        """Host name, IP address or path of the socket."""
        return self.location.host

    @property
    def port(self) -> int | None:
        """The port, by default the scheme's; None for a socket."""
        return self.location.port

    @property
    def server(self) -> ServerInfo:
        """Its identity, as far as known before the first response."""
        where = self.location
        labels = dict(self.labels) | ({"server.path": where.prefix} if where.prefix else {})
        return ServerInfo(where.host, where.port, labels=tuple(sorted(labels.items())))


def target(
    text: str,
    *,
    scheme: str = "http",
    api_key_file: str | None = None,
    labels: Mapping[str, str] | None = None,
    private: bool = False,
) -> Target:
    """The target of an address, with or without ``http://``; see ``parse_address``. Raises UsageError."""
    url = (text if "://" in text else f"{scheme}://{text}").rstrip("/")
    parse_address(url, private=private)
    return Target(url, api_key_file, check_labels(labels or {}))


def check_labels(labels: Mapping[str, Any]) -> Labels:
    """The labels that are kept, sorted by name. Raises UsageError."""
    kept = {name: value for name, value in labels.items() if not name.startswith("__")}
    if len(kept) > _MAX_LABELS:
        raise UsageError(f"a target has more than {_MAX_LABELS} labels")
    for name, value in kept.items():
        if not _LABEL.fullmatch(name):
            shown = repr(name) if len(name) <= _LONGEST_SHOWN else "one of the labels' names"
            raise UsageError(f"{shown} is not a label name: use letters, digits and underscores")
        if name in _OWN:
            raise UsageError(f"the label {name} is set by llamatel")
        if not isinstance(value, str) or len(value) > _LONGEST_VALUE or not value.isprintable():
            raise UsageError(f"the label {name} is not text of at most {_LONGEST_VALUE} characters")
    return tuple(sorted((name, value) for name, value in kept.items() if value))


def parse_label(text: str) -> tuple[str, str]:
    """The label in ``NAME=VALUE``. Raises UsageError."""
    name, equals, value = text.partition("=")
    if not equals or name.startswith("__"):
        raise UsageError(f"{text!r} is not a label: write it NAME=VALUE")
    check_labels({name: value})
    return name, value


def parse_lines(text: str) -> list[Target]:
    """One address per line, optionally followed by its API key file; ``#`` starts a comment."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split(maxsplit=1)
        if words:
            try:
                key_file = words[1].strip() if len(words) > 1 else None
                found.append(target(words[0], api_key_file=key_file, private=True))
            except UsageError as error:
                raise UsageError(f"line {number}: {error}") from None
    return found


def parse_groups(document: Any) -> list[Target]:
    """The targets of a ``file_sd`` document. Raises UsageError for an invalid one."""
    if document is None:  # an empty YAML file
        return []
    if not isinstance(document, list):
        raise UsageError("it is not a list of target groups")
    found = []
    for place, group in enumerate(document, 1):
        if not isinstance(group, dict) or not isinstance(group.get("targets"), list):
            raise UsageError("a target group has no list 'targets'")
        labels = group.get("labels") or {}
        if not isinstance(labels, dict):
            raise UsageError("the labels of a target group are not a map")
        labels = {name: "" if value is None else value for name, value in labels.items()}
        scheme, key_file = (_text(labels, name) for name in ("__scheme__", "__api_key_file__"))
        for number, address in enumerate(group["targets"], 1):
            if not isinstance(address, str):
                raise UsageError("a target is not text")
            try:
                entry = target(address, scheme=scheme or "http", api_key_file=key_file, labels=labels, private=True)
            except UsageError as error:
                raise UsageError(f"target {number} of group {place}: {error}") from None
            found.append(entry)
    return found


def _text(labels: Mapping[str, Any], name: str) -> str | None:
    value = labels.get(name) or None
    if value is not None and not isinstance(value, str):
        raise UsageError(f"the label {name} is not text")
    return value


def parse_file(name: str, text: str) -> list[Target]:
    """The targets of a file, by its name's end. Raises UsageError."""
    try:
        if name.endswith(".json"):
            return parse_groups(parse_json(text))
        if name.endswith((".yml", ".yaml")):
            return parse_groups(parse_yaml(text))
    except InvalidDocument as error:
        raise UsageError(str(error)) from None
    return parse_lines(text)


class TargetFiles:
    """Files of targets, read again when they change. Not thread-safe.

    Names may have ``*`` in their last part. If a file becomes unreadable or invalid, its last valid targets are kept,
    which is logged once; it is read again when it changes.
    """

    def __init__(
        self, names: Iterable[str], addresses: Sequence[Target] = (), *, labels: Mapping[str, str] | None = None
    ) -> None:
        """``addresses``: static targets; ``labels`` are added to all targets.

        Raises UsageError if a file without ``*`` cannot be read now.
        """
        self._patterns = [user_path(name) for name in names]
        self._addresses = tuple(addresses)
        self._labels = check_labels(labels or {})
        self._seen: dict[Path, tuple[int, ...]] = {}
        self._targets: dict[Path, list[Target]] = {}
        self._once = LogOnce(_log)
        for path in self._files():
            self._seen[path] = self._stamp(path)
            self._targets[path] = self._read(path)

    @property
    def watched(self) -> bool:
        """Whether there are files that could change."""
        return bool(self._patterns)

    def changed(self) -> bool:
        """Read the changed files; True if their targets changed."""
        files = list(self._files())
        removed = self._targets.keys() - set(files)
        for path in removed:
            del self._targets[path]
            self._seen.pop(path, None)
        changed = bool(removed)
        for path in files:
            stamp = self._stamp(path)
            if stamp == self._seen.get(path):
                continue
            self._seen[path] = stamp
            try:
                self._targets[path] = self._read(path)
                self._once.reset(str(path))
                changed = True
            except UsageError as error:
                self._once.warning(str(path), "%s; its last targets are kept", error)
        return changed

    def targets(self) -> tuple[Target, ...]:
        """All targets without duplicates, in order; the first entry of an address is used."""
        found: dict[Address, Target] = {}
        for entry in (*self._addresses, *(entry for path in sorted(self._targets) for entry in self._targets[path])):
            labels = tuple(sorted((dict(self._labels) | dict(entry.labels)).items()))
            found.setdefault(entry.location, replace(entry, labels=labels))
        if len(found) > _MAX_TARGETS:
            self._once.warning("too many", "more than %d targets: the others are ignored", _MAX_TARGETS)
        return tuple(found.values())[:_MAX_TARGETS]

    def _files(self) -> Iterator[Path]:
        for pattern in self._patterns:
            if "*" in pattern.name:
                yield from sorted(pattern.parent.glob(pattern.name))
            else:
                yield pattern

    @staticmethod
    def _stamp(path: Path) -> tuple[int, ...]:
        """A value that changes with the file, also if a link to it is replaced, as Kubernetes does for a ConfigMap."""
        try:
            state = path.stat()
        except OSError:
            return ()
        if stat.S_ISFIFO(state.st_mode):
            return (0,)  # a pipe is read once: its content cannot be read again, and its writer may keep it open
        return (state.st_mtime_ns, state.st_size, state.st_ino)

    @staticmethod
    def _read(path: Path) -> list[Target]:
        text = read_text(path, "the targets in")
        try:
            return parse_file(path.name, text)
        except UsageError as error:
            raise UsageError(f"cannot read the targets in {path}: {error}") from None
