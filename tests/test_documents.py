"""Untrusted JSON and YAML: accepted values, and each limit."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llamatel.inputs.documents import InvalidDocument, count, parse_json, parse_yaml, text


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(), lambda inner: st.lists(inner)
    | st.dictionaries(st.text(), inner), max_leaves=20,
))  # fmt: skip
def test_json_values(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) == value


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "not JSON"),
        ("{}".encode("utf-16"), "encoding"),
        (b"[" * 100 + b"]" * 100, "too deeply"),
        (b'{"a":' * 100000, "too deeply"),
        (b"[1" + b",1" * 300000 + b"]", "more than 262144 values"),
        (b"[" + b"{}," * 300000 + b"1]", "more than 262144 values"),
        (b"9" * 5000, "integer that is too long"),
        (b'{"a": -' + b"9" * 41 + b"}", "integer that is too long"),
        (b'"' + b"x" * (9 << 20) + b'"', "more than 8192 KiB"),
    ],
)
def test_json_refused(data: bytes, why: str) -> None:
    with pytest.raises(InvalidDocument, match=why) as caught:
        parse_json(data)
    assert "\n" not in str(caught.value)


def test_json_brackets_and_commas_in_text_do_not_count() -> None:
    value = {"prompt": '[{"\\",' * 200000, "x": [1]}
    assert parse_json(json.dumps(value)) == value


@given(st.binary(max_size=200), st.text('[]{}",:\\0123456789.eEtrufalsn \n', max_size=200))
def test_json_any_bytes(junk: bytes, almost: str) -> None:
    for data in (junk, almost, almost.encode() + junk):
        with contextlib.suppress(InvalidDocument):
            parse_json(data)


def test_yaml_scalars_stay_text() -> None:
    document = """
- targets: [10.0.0.1:8080, "b:1", 1:30]
  labels: {since: 2026-02-30, flag: on, hex: 0x_, none: ~, quoted: "null", number: 1e999}
- targets:
    - x
  labels:
"""
    assert parse_yaml(document) == [
        {
            "targets": ["10.0.0.1:8080", "b:1", "1:30"],
            "labels": {
                "since": "2026-02-30", "flag": "on", "hex": "0x_", "none": None, "quoted": "null", "number": "1e999",
            },
        },
        {"targets": ["x"], "labels": None},
    ]  # fmt: skip
    assert parse_yaml("") is None
    assert parse_yaml("# nothing\n---\n") is None
    assert parse_yaml("9" * 5000) == "9" * 5000


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (BOMB, "anchors and aliases"),
        ("&a [*a]", "anchors and aliases"),
        ("- *a", "aliases|not YAML"),
        ("!!python/object/apply:os.system [ls]", "tags"),
        ("a: 1\na: 2", "a key twice"),
        ("[a]: b", "a key of a map is not text"),
        ("? \n: b", "a key of a map is not text"),
        ("--- a\n--- b", "more than one document"),
        ("[" * 100 + "]" * 100, "too deeply"),
        ("- " * 100 + "a", "too deeply"),
        ("{" * 1000, "too deeply|not YAML"),
        ("[" + "x," * 300000 + "]", "more than 262144 values"),
        ("x" * (2 << 20), "more than 1024 Ki characters"),
        ("a: [", "not YAML"),
        ("\0", "not YAML"),
        ("a: 'b", "not YAML"),
    ],
)
def test_yaml_refused(document: str, why: str) -> None:
    start = time.monotonic()
    with pytest.raises(InvalidDocument, match=why) as caught:
        parse_yaml(document)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 60


@given(st.text(max_size=200), st.text("-:[]{}&*!?|>'\"#%@`, \nab0~", max_size=100))
def test_yaml_any_text(junk: str, almost: str) -> None:
    for document in (junk, almost):
        with contextlib.suppress(InvalidDocument):
            parse_yaml(document)


@given(st.recursive(
    st.text("abcdef ", min_size=1), lambda inner: st.lists(inner, min_size=1)
    | st.dictionaries(st.text("abc", min_size=1), inner, min_size=1), max_leaves=20,
))  # fmt: skip
def test_yaml_values(value: object) -> None:
    assert parse_yaml(yaml.safe_dump(value, default_style='"')) == value or "'" in repr(value)


@pytest.mark.parametrize(
    ("value", "as_text", "as_count"),
    [
        ("a", "a", None), ("", None, None), ("x" * 5000, None, None), (None, None, None), (5, None, 5), (0, None, 0),
        (-1, None, None), (True, None, None), (1 << 41, None, None), (1.5, None, None), (float("inf"), None, None),
    ],
)  # fmt: skip
def test_text_and_count(value: object, as_text: str | None, as_count: int | None) -> None:
    assert (text(value), count(value)) == (as_text, as_count)
