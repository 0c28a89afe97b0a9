"""Secrets in files that are replaced while the program runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from llamatel.errors import UsageError
from llamatel.inputs.credentials import api_key_of
from llamatel.inputs.http import HttpClient
from llamatel.inputs.rotated_files import RotatedFiles
from llamatel.inputs.text_file import read_token


def mounted(folder: Path, token: str) -> Path:
    """A file of a Kubernetes Secret: a link through ``..data``, which is replaced at once."""
    version = folder / f"..{token.strip() or 'empty'}"
    version.mkdir()
    (version / "token").write_text(token)
    link = folder / "..new"
    link.symlink_to(version.name)
    link.replace(folder / "..data")
    path = folder / "token"
    if not path.is_symlink():
        path.symlink_to("..data/token")
    return path


def test_rotated_file_of_a_kubernetes_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = mounted(tmp_path, "first")
    token = RotatedFiles([path], lambda: read_token(path, "the token file"))
    assert token() == "first"
    mounted(tmp_path, "second")
    assert token() == "second"
    with caplog.at_level(logging.WARNING):
        mounted(tmp_path, "")
        assert [token(), token()] == ["second"] * 2
        (tmp_path / "..data").unlink()
        assert token() == "second"
    assert [record.getMessage() for record in caplog.records] == [
        f"the token file {path} is empty: the earlier content is used"
    ]
    mounted(tmp_path, "third")
    assert token() == "third"


def test_rotated_file_rewritten_in_place(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("# ours\nfirst\n")
    key = api_key_of(path)
    client = HttpClient("http://127.0.0.1:9", api_key=key)
    path.write_text("a second\n")
    assert client._own_headers()["Authorization"] == "Bearer a second"
    path.write_text("with\ta tab\n")
    assert key() == "a second"


def test_rotated_pipe_is_read_once() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"secret\n")
    os.close(writer)
    path = f"/dev/fd/{reader}"
    token = RotatedFiles([path], lambda: read_token(path, "the token file"))
    os.close(reader)
    assert [token(), token()] == ["secret"] * 2


def test_rotated_file_missing_at_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the token file"):
        RotatedFiles([tmp_path / "no"], lambda: read_token(tmp_path / "no", "the token file"))
