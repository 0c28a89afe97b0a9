"""Which servers to attach to: addresses, files with one address a line, and Prometheus's file discovery.

A file whose name ends in .json, .yml or .yaml is a list as Prometheus's ``file_sd_configs`` has it::

    [{"targets": ["10.0.0.1:8080"], "labels": {"__scheme__": "https"}}]

Of the labels only ``__scheme__`` and ``__api_key_file__`` mean something here, and none is carried into the metrics:
a series is told by the server's address, port and model, to which Prometheus can join what it knows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llamatel.errors import UsageError
from llamatel.inputs.text_file import read_text

_log = logging.getLogger(__name__)

_MAX_TARGETS = 4096
"""A discovery that went wild must not take the machine with it."""


@dataclass(frozen=True, slots=True)
class Target:
    """One server to attach to."""

    url: str
    """``http://host:port``, perhaps with a path in front of llama.cpp's own."""
    api_key_file: str | None = None
    """Of its own; None: the one for all."""

    @property
    def address(self) -> str:
        """Host name or IP address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port, the scheme's own if none is named."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)


def target(text: str, *, scheme: str = "http", api_key_file: str | None = None) -> Target:
    """The target of an address, with or without ``http://``. Raises UsageError for one that is none."""
    url = (text if "://" in text else f"{scheme}://{text}").rstrip("/")
    try:
        parts = urlsplit(url)
        port = parts.port  # raises ValueError for one that is none
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or any(map(str.isspace, url)):
        raise UsageError(f"'{text}' is no server's address: write it like http://127.0.0.1:8080")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Not shown: it may hold a password.
        raise UsageError("a server's address has no user, password, query or fragment; for keys: --api-key-file")
    return Target(url, api_key_file)


def parse_lines(text: str) -> list[Target]:
    """One address a line, and behind it perhaps the file of its API key; ``#`` begins a comment."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split(maxsplit=1)
        if words:
            try:
                found.append(target(words[0], api_key_file=words[1].strip() if len(words) > 1 else None))
            except UsageError as error:
                raise UsageError(f"line {number}: {error}") from None
    return found


def parse_groups(document: Any) -> list[Target]:
    """The targets of a ``file_sd`` document. Raises UsageError for one that is none."""
    if document is None:  # an empty YAML file
        return []
    if not isinstance(document, list):
        raise UsageError("it is no list of target groups")
    found = []
    for group in document:
        if not isinstance(group, dict) or not isinstance(group.get("targets"), list):
            raise UsageError("a target group has no list 'targets'")
        labels = group.get("labels") or {}
        if not isinstance(labels, dict):
            raise UsageError("the labels of a target group are no map")
        key_file = labels.get("__api_key_file__")
        for address in group["targets"]:
            scheme = str(labels.get("__scheme__") or "http")
            found.append(target(str(address), scheme=scheme, api_key_file=str(key_file) if key_file else None))
    return found


def parse_file(name: str, text: str) -> list[Target]:
    """The targets of a file, by its name's end. Raises UsageError."""
    if name.endswith(".json"):
        try:
            return parse_groups(json.loads(text))
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"it is no JSON: {error}") from None
    if name.endswith((".yml", ".yaml")):
        import yaml

        try:
            return parse_groups(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise UsageError(f"it is no YAML: {str(error).splitlines()[0]}") from None
    return parse_lines(text)


class TargetFiles:
    """Files of targets, read again when they change. Not thread-safe.

    Names may hold ``*`` in their last part. A file that cannot be read, or holds nonsense, after it could be read once,
    keeps its last good targets and is complained about once.
    """

    def __init__(self, names: Iterable[str], addresses: Sequence[Target] = ()) -> None:
        """``addresses`` are always there. Raises UsageError if a file without ``*`` cannot be read now."""
        self._patterns = [Path(name).expanduser() for name in names]
        self._addresses = tuple(addresses)
        self._seen: dict[Path, tuple[int, ...]] = {}
        self._targets: dict[Path, list[Target]] = {}
        self._bad: set[Path] = set()
        self._logged: set[str] = set()
        for path in self._files():
            self._seen[path] = self._stamp(path)
            self._targets[path] = self._read(path)

    @property
    def watched(self) -> bool:
        """Whether there is any file that could change."""
        return bool(self._patterns)

    def changed(self) -> bool:
        """Look at the files and take up what changed; True if there was anything."""
        files = list(self._files())
        gone = self._targets.keys() - set(files)
        for path in gone:
            del self._targets[path], self._seen[path]
        changed = bool(gone)
        for path in files:
            stamp = self._stamp(path)
            if stamp == self._seen.get(path):
                continue
            self._seen[path] = stamp
            try:
                self._targets[path] = self._read(path)
                self._bad.discard(path)
                changed = True
            except UsageError as error:
                if path not in self._bad:
                    self._bad.add(path)
                    _log.warning("%s; its last targets are kept", error)
        return changed

    def targets(self) -> tuple[Target, ...]:
        """All targets, each once, in their order; the first mention of an address counts.

        Address and port tell servers apart in the metrics: of two behind paths of one, only the first can be there.
        """
        found: dict[tuple[str, int], Target] = {}
        for entry in (*self._addresses, *(entry for path in sorted(self._targets) for entry in self._targets[path])):
            first = found.setdefault((entry.address, entry.port), entry)
            if first.url != entry.url:
                self._say(f"{entry.url} is left out: it has the host and port of {first.url}")
        if len(found) > _MAX_TARGETS:
            self._say(f"more than {_MAX_TARGETS} targets: the others are left out")
        return tuple(found.values())[:_MAX_TARGETS]

    def _say(self, sentence: str) -> None:
        """Once; a discovery that goes wild is not repeated for ever."""
        if sentence not in self._logged and len(self._logged) < _MAX_TARGETS:
            self._logged.add(sentence)
            _log.warning("%s", sentence)

    def _files(self) -> Iterator[Path]:
        for pattern in self._patterns:
            if "*" in pattern.name:
                yield from sorted(pattern.parent.glob(pattern.name))
            else:
                yield pattern

    @staticmethod
    def _stamp(path: Path) -> tuple[int, ...]:
        """What changes when the file does; also if a link to it is moved, as Kubernetes does with a ConfigMap's."""
        try:
            state = path.stat()
        except OSError:
            return ()
        return (state.st_mtime_ns, state.st_size, state.st_ino)

    @staticmethod
    def _read(path: Path) -> list[Target]:
        text = read_text(path, "the targets in")
        try:
            return parse_file(path.name, text)
        except UsageError as error:
            raise UsageError(f"cannot read the targets in {path}: {error}") from None
