"""Files that the user names: tokens, and errors for unusable files."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamatel.errors import UsageError
from llamatel.inputs.text_file import read_text, read_token


@pytest.mark.parametrize("content", ["s3cret é", " s3cret é\n", "\ns3cret é\r\n\n"])
def test_read_token(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_bytes(content.encode())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_token("~/token", "the token file") == "s3cret é"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the token file FILE is empty"),
        (b" \n\n", "the token file FILE is empty"),
        (b"s3cret\nother\n", "the token file FILE contains more than one line, or a control character"),
        (b"s3cret\x00", "the token file FILE contains more than one line, or a control character"),
        (b"s3cret\xff", "cannot read the token file FILE: it is not text"),
        (None, "cannot read the token file FILE: No such file or directory"),
    ],
)
def test_read_token_invalid_file(content: bytes | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_token(path, "the token file")
    assert str(caught.value) == expected.replace("FILE", str(path))


def test_read_text_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the header file"):
        read_text(tmp_path, "the header file")
