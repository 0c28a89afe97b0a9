"""``llamatel explore``: a model's attention, as llama.cpp computes it."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamatel.cli.options import verbose_option
from llamatel.errors import GGUFError, UsageError
from llamatel.gguf.header import GGUFHeader
from llamatel.gguf.model_choices import Choices
from llamatel.gguf.model_reference import read_reference
from llamatel.inputs.text_file import user_path
from llamatel.plan.model_report import ModelReport, report_of

if TYPE_CHECKING:
    from llamatel.explore import CaptureRequest
    from llamatel.explore.picture import Picture

PARTS = ("structure", "heads", "attention", "keys", "matrices", "cache", "what-if", "report")
_PROMPT = "The cat sat on the mat. The dog saw the cat. The cat sat on the"
_TINY_PROMPT = "the cup is red . the ball is blue . what color is the cup ?"
_REPEAT = 32


@dataclass(frozen=True, slots=True)
class Explore:
    """One call of the command."""

    report: ModelReport
    request: CaptureRequest
    out: Path | None
    as_json: bool
    longest: int
    token: int
    progress: Callable[[str, int, int], None] | None

    def run(self, part: str) -> None:
        """Produce one part."""
        getattr(self, "_" + part.replace("-", "_"))()

    def _show(self, head: Sequence[str], rows: Sequence[Sequence[object]], document: object) -> None:
        if self.as_json:
            print(json.dumps(document, indent=2, allow_nan=False))
            return
        cells = [
            list(head),
            *(["-" if c is None else f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows),
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for line in cells:
            first, *others = (
                cell.rjust(width) if place else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            print("  ".join((first, *others)))

    def _save(self, *pictures: Picture, requested: bool = False) -> None:
        """Save into ``--out``; ``requested``: without it, into the current folder."""
        if self.out is None and not requested:
            return
        if len(pictures) > 1 and self.out is not None and not self.out.is_dir():
            raise UsageError("several pictures need a folder: --out FOLDER")
        for picture in pictures:
            print(picture.save(self.out), file=sys.stderr if self.as_json else sys.stdout)

    def _structure(self) -> None:
        from llamatel.explore.grouping import grouping_picture

        if self.report.shape is None:
            raise UsageError(self.report.why_no_shape or "this is not a model")
        if self.as_json:
            print(json.dumps(self.report.as_dict(layers=True), indent=2, allow_nan=False))
        else:
            from llamatel.cli.inspect import _show

            _show(self.report, layers=True, tensors=False)
        if self.out is not None:
            self._save(
                grouping_picture(self.report.shape, (self.request.layers or (None,))[0], Path(self.request.model).stem)
            )

    def _heads(self) -> None:
        from llamatel.explore import head_scores
        from llamatel.explore.explore_child import capture
        from llamatel.explore.maps import overview_picture

        run = capture(self.request, self.progress)
        scores = head_scores(run)
        names = ("previous", "current", "first", "local", "induction", "uniform", "entropy_bits")
        rows = [(f"{s.layer}.{s.head}", s.kind, *(getattr(s, name) for name in names)) for s in scores]
        document = {
            "model": self.request.model,
            "heads": [score.as_dict() for score in scores],
            "missing": {str(layer): why for layer, why in run.missing.items()},
        }
        self._show(("layer.head", "kind", *(name.replace("_bits", ", bits") for name in names)), rows, document)
        if not self.as_json:
            for layer, why in run.missing.items():
                print(f"layer {layer} has no attention map: {why}")
        if scores:
            self._save(overview_picture(run, scores))

    def _attention(self) -> None:
        from llamatel.explore import head_scores
        from llamatel.explore.explore_child import capture
        from llamatel.explore.maps import attention_picture, head_picture

        run = capture(self.request, self.progress)
        if self.out is not None and self.out.suffix == ".npz":
            print(run.save(self.out))
            return
        if not run.layers:
            layer, why = next(iter(run.missing.items()))
            raise UsageError(f"no layer has an attention map (layer {layer}: {why})")
        if self.request.heads is not None:
            self._save(*(head_picture(run, layer, head) for layer in run.layers for head in run.layer(layer).heads),
                       requested=True)  # fmt: skip
        else:
            scores = head_scores(run)
            self._save(*(attention_picture(run, layer, scores) for layer in run.layers), requested=True)

    def _keys(self) -> None:
        from llamatel.explore.explore_child import capture
        from llamatel.explore.grouping import keys_picture

        run = capture(self.request, self.progress)
        layers = self.request.layers or tuple(run.layers)[:1] or (0,)
        self._save(*(keys_picture(run, layer, token=self.token) for layer in layers), requested=True)

    def _matrices(self) -> None:
        from llamatel.explore.matrices import matrices, spectra_picture

        limit = self.request.max_bytes
        found = tuple(matrices(self.report, self.request.layers, max_bytes=limit, progress=self.progress))
        rows = [
            (m.name, m.role.upper(), f"{m.shape[0]} x {m.shape[1]}", m.type, m.norm, float(m.spectrum[0]),
             m.effective_rank)
            for m in found
        ]  # fmt: skip
        head = ("matrix", "role", "outputs x inputs", "type", "norm", "largest", "effective rank")
        self._show(head, rows, {"model": self.request.model, "matrices": [m.as_dict() for m in found]})
        if found:
            self._save(spectra_picture(found, Path(self.request.model).stem))

    def _cache(self) -> None:
        from llamatel.explore.cache_picture import timing_picture, unchanged
        from llamatel.explore.explore_child import capture, timings

        run = capture(self.request, self.progress)
        same = unchanged(run, threads=self.request.threads, gpu_layers=self.request.gpu_layers)
        times = timings(
            self.request.model,
            longest=self.longest,
            threads=self.request.threads,
            gpu_layers=self.request.gpu_layers,
            progress=self.progress,
        )
        rows = [
            (int(t["tokens"]), 1000 * t["with_cache_s"], 1000 * t["without_cache_s"],
             t["without_cache_s"] / t["with_cache_s"])
            for t in times
        ]  # fmt: skip
        document = {"model": self.request.model, "unchanged": asdict(same), "next_token": times}
        if not self.as_json:
            print(
                f"with {same.added} tokens added, the attention of the first {same.tokens} changed by at most "
                f"{same.largest_difference:.1e}\n\nthe next token:"
            )
        self._show(("tokens before it", "with cache, ms", "without, ms", "times slower"), rows, document)
        self._save(timing_picture(times, run.name))

    def _what_if(self) -> None:
        from llamatel.explore.what_if import what_if, what_if_picture
        from llamatel.ui.view.text_page import parameters, size

        found = what_if(self.report)
        rows = [
            (f"{w.variant.name}{' *' if w.variant.own else ''}", w.variant.kv_heads,
             parameters(w.variant.kv_parameters), *map(size, w.cache_bytes))
            for w in found
        ]  # fmt: skip
        head = ("as", "KV heads", "K, V parameters", *(f"cache at {context:,}" for context in found[0].contexts))
        self._show(head, rows, {"model": self.request.model, "variants": [w.as_dict() for w in found]})
        if not self.as_json:
            print("* the model as it is; f16 cache, every layer keeping all tokens")
        self._save(what_if_picture(found, Path(self.request.model).stem))

    def _report(self) -> None:
        from llamatel.explore.explore_report import make_report

        made = make_report(self.report, self.request, longest=self.longest, progress=self.progress)
        path = self.out or Path(f"{made.run.name}_attention.html")
        if path.is_dir():
            path = path / f"{made.run.name}_attention.html"
        path.write_text(made.html(), encoding="utf-8")
        print(path)


def _numbers(text: str | None, what: str) -> tuple[int, ...] | None:
    """``0,3-5``: 0, 3, 4, 5."""
    if text is None:
        return None
    chosen: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise UsageError(f"--{what} takes numbers and ranges, as in 0,3-5: not {text}")
        chosen += range(int(found[1]), int(found[2] or found[1]) + 1)
    return tuple(dict.fromkeys(chosen))


def _rows(text: str | None) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d{1,9})-(\d{1,9})", text) if text is not None else None
    if text is not None and found is None:
        raise UsageError(f"--rows takes FROM-TO, as in 100-160: not {text}")
    return (int(found[1]), int(found[2])) if found is not None else None


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """Progress on a terminal's standard error, removed when done."""
    if not sys.stderr.isatty():
        yield None
        return
    from llamatel.cli.console import note_console

    with note_console().status("starting llama.cpp") as status:
        yield lambda what, done, total: status.update(f"{what} {done}/{total}" if total > 1 else what)


def _model(name: str, part: str) -> tuple[str, ModelReport, bool]:
    """The file, its header, and whether it is llamatel's own tiny model."""
    there = user_path(name).exists()
    if not there and name != "tiny":
        raise UsageError(f"{name}: there is no such file; give a GGUF on this machine, or tiny for the one we ship")
    header = read_reference(name)
    if isinstance(header, Choices):
        raise UsageError(header.question)
    if not isinstance(header, GGUFHeader):
        raise UsageError(f"{name} is not a GGUF: llama.cpp has to run it")
    if header.missing_bytes and part not in ("structure", "what-if"):
        missing = f"{header.missing_bytes:,} bytes of the tensors' data are missing: an interrupted download?"
        raise GGUFError(missing, path=header.path)
    return str(header.path), report_of(header, str(header.path)), not there


@click.command("explore")
@click.argument("model")
@click.argument("part", type=click.Choice(PARTS), default="report")
@click.option("-p", "--prompt", metavar="TEXT", help="Text to run through the model.")
@click.option(
    "--repeat", type=click.IntRange(min=2), metavar="N", help="Use N random tokens, repeated once, instead of a prompt."
)
@click.option("--chat/--no-chat", default=None, help="Apply the model's chat template.")
@click.option("-n", "--generate", type=click.IntRange(min=0), metavar="N", help="Generate N tokens after the prompt.")
@click.option("--layers", metavar="LIST", help="Only these layers, such as 0,4-7.")
@click.option("--heads", metavar="LIST", help="Only these query heads; attention: one picture each.")
@click.option("--rows", metavar="FROM-TO", help="Only rows of these positions.")
@click.option("--token", type=click.IntRange(min=0), default=0, metavar="N", help="keys: the token.  [default: 0]")
@click.option("--longest", type=click.IntRange(min=0), default=256, show_default=True, metavar="N",
              help="cache, report: longest sequence that is timed.")  # fmt: skip
@click.option(
    "--cache-type", type=click.Choice(["f16", "f32"]), default="f16", show_default=True, help="Type of the KV cache."
)
@click.option("-t", "--threads", type=click.IntRange(min=1), metavar="N", help="Number of llama.cpp's threads.")
@click.option("-ngl", "--gpu-layers", type=int, default=0, metavar="N", help="Layers on the GPU.  [default: 0]")
@click.option("--max-bytes", type=click.IntRange(min=1), default=1 << 30, show_default=True, metavar="N",
              help="Memory limit.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="PATH",
              help="Write pictures (.png, or a folder), arrays (.npz) or the report (.html) here.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@verbose_option
def command(model: str, part: str, **values: Any) -> None:
    """Show a model's attention, as llama.cpp computes it.

    MODEL is a GGUF file, or tiny, the model that llamatel ships. PART is structure, heads (what each does), attention
    (maps), keys (by group), matrices (Q, K, V, O), cache (with and without), what-if (MHA, GQA, MQA), or report (the
    default): everything on one HTML page.
    """
    from llamatel.explore import CaptureRequest

    path, report, shipped = _model(model, part)
    prompt, repeat, chat, generate = (values[name] for name in ("prompt", "repeat", "chat", "generate"))
    if prompt is not None and repeat is not None:
        raise UsageError("give --prompt or --repeat, not both")
    if values["as_json"] and part in ("attention", "keys", "report"):
        raise UsageError(f"{part} prints no table: --json is for structure, heads, matrices, cache, what-if")
    if part == "heads" and prompt is None and repeat is None:
        repeat = _REPEAT
    own = shipped and prompt is None and repeat is None
    request = CaptureRequest(
        model=path,
        prompt=prompt if prompt is not None else _TINY_PROMPT if own else _PROMPT,
        repeat=repeat,
        chat=own if chat is None else chat,
        generate=generate if generate is not None else 6 if own and part in ("attention", "report") else 0,
        layers=_numbers(values["layers"], "layers"),
        heads=_numbers(values["heads"], "heads"),
        rows=_rows(values["rows"]),
        cache_type=values["cache_type"],
        threads=values["threads"],
        gpu_layers=values["gpu_layers"],
        max_bytes=values["max_bytes"],
    )
    out = values["out"]
    if out is not None and not out.is_dir() and not out.parent.is_dir():
        raise UsageError(f"there is no folder {out.parent} to write to")
    with _progress() as progress:
        Explore(report, request, out, values["as_json"], values["longest"], values["token"], progress).run(part)
