"""What the GGUF reader promises for any bytes whatever."""

from __future__ import annotations

from llamatel.errors import GGUFError, LlamatelError
from llamatel.gguf.byte_source import BytesSource
from llamatel.gguf.header import GGUFHeader, read_header
from llamatel.gguf.metadata import SkippedArray
from llamatel.plan.model_report import report_of
from llamatel.ui.view.html import model_html
from llamatel.ui.view.model_page import layers_text, model_text


class Broken(Exception):
    """A promise was not kept."""


def _read(data: bytes, *, arrays: bool) -> GGUFHeader | GGUFError:
    try:
        return read_header(BytesSource(data, "fuzz"), read_tensors=True, read_arrays=arrays)
    except GGUFError as error:
        if error.offset is None or not 0 <= error.offset <= len(data) or not error.reading:
            raise Broken(f"the error does not say where: {error}") from error
        if "\n" in str(error):
            raise Broken(f"not one line: {error!r}") from error
        return error


def check(data: bytes) -> bool:
    """Raise unless ``data`` is read, alike in both ways of reading, or refused; True if it was read."""
    short, full = _read(data, arrays=False), _read(data, arrays=True)
    if isinstance(full, GGUFHeader):
        if not isinstance(short, GGUFHeader):
            raise Broken(f"refused only where arrays are passed over: {short}")
        _same(short, full)
    elif isinstance(short, GGUFHeader) and "not UTF-8" not in str(full):
        raise Broken(f"refused only where arrays are decoded: {full}")
    if not isinstance(short, GGUFHeader):
        return False
    try:
        report = report_of(short)
    except LlamatelError:
        return True
    report.as_dict(layers=True, tensors=True)
    model_text(report), layers_text(report), model_html(report)
    return True


def _same(short: GGUFHeader, full: GGUFHeader) -> None:
    if (
        short.tensors != full.tensors
        or short.data_offset != full.data_offset
        or list(short.metadata) != list(full.metadata)
    ):
        raise Broken("passing over arrays and decoding them differ")
    for key, value in short.metadata.items():
        whole = full.metadata[key]
        if isinstance(value, SkippedArray):
            if not isinstance(whole, tuple) or len(whole) != value.count:
                raise Broken(f"{key}: {value} is decoded as something else")
        elif repr(value) != repr(whole):
            raise Broken(f"{key}: {value!r} and {whole!r}")
