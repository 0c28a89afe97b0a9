"""The notation of ``tensors.txt``: ``blk.{0,2-3}.attn_q.weight 128 64`` is three tensors of one shape."""

from __future__ import annotations

Shape = tuple[int, ...]


def expand(line: str) -> dict[str, Shape]:
    """The tensors of one line; a line without numbers gives a shape of one value."""
    pattern, *numbers = line.split()
    shape = tuple(map(int, numbers)) or (1,)
    before, brace, rest = pattern.partition("{")
    if not brace:
        return {pattern: shape}
    layers, _, after = rest.partition("}")
    found: dict[str, Shape] = {}
    for span in layers.split(","):
        first, _, last = span.partition("-")
        found |= {f"{before}{layer}{after}": shape for layer in range(int(first), int(last or first) + 1)}
    return found


def spans(layers: list[int]) -> str:
    """``0,2-3`` for 0, 2 and 3."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
