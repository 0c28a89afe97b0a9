"""GPU: cards, memory of servers, energy of requests, decode rate compared with the ceiling."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from llamatel_dashboards import queries as q
from llamatel_dashboards.board import board
from llamatel_dashboards.figures import TPOT, quantiles
from llamatel_dashboards.panels import GREEN, RED, TOKENS_A_SECOND, YELLOW, Panel, Query, at, figure, lines

_NONE = "No NVIDIA GPU"
_DEVICE = "hw_id, hw_name"
_LEGEND = "{{hw_name}} {{hw_id}}"
_JOULES = "joule"


def _card(name: str, **labels: str) -> str:
    """One series a card, even if several llamatels report it."""
    return f"max by ({_DEVICE}) ({q.selector(name, **labels)})"


def _now() -> list[Panel]:
    return [
        figure(
            "Busiest card",
            f"max({q.selector('hw.gpu.utilization')})",
            "Share of the time in which a kernel ran, on the busiest card. One request is enough for 100 %.",
            "Not a measure of load: use waiting requests and KV headroom. Low while slots are busy: layers run on the "
            "CPU, or the CPU samples.",
            unit="percentunit",
            empty=_NONE,
        ),
        figure(
            "Fullest card",
            f"max({q.selector('hw.gpu.memory.utilization')})",
            "Share of a card's memory that processes use, on the fullest card.",
            "Near 1: the next allocation fails. `llamatel plan MODEL -- FLAGS` shows what would fit.",
            unit="percentunit",
            thresholds=at((None, GREEN), (0.9, YELLOW), (0.97, RED)),
            empty=_NONE,
        ),
        figure(
            "Power",
            f"sum({_card('hw.power')})",
            "Power that all cards draw now.",
            "At the limit (below) the clocks are reduced.",
            unit="watt",
            empty=_NONE,
        ),
        figure(
            "Energy a token",
            q.share(q.increase("llamacpp.energy"), q.increase("llamacpp.tokens", type="output")),
            "Energy of finished requests, prefill included, over the tokens generated, in the time shown. Idle power "
            "is not included.",
            "Concurrent requests share the reading of weights: each token gets cheaper.",
            unit=_JOULES,
            empty=_NONE,
        ),
        figure(
            "Not on the GPU as requested",
            q.total(q.selector("llamacpp.gpu.fallback")),
            "Servers whose layers are not on the GPU as requested.",
            "Does the build support the GPU, does the driver respond, does the model fit? See the server's log.",
            thresholds=at((None, GREEN), (1, RED)),
            empty="Unknown",
        ),
        figure(
            "Cost",
            q.increase("llamacpp.energy.cost"),
            "Cost of the energy of finished requests in the time shown, at the price given to llamatel "
            "(LLAMATEL_PRICE_PER_KWH), in its currency.",
            "Lower the energy a token.",
            empty="No price given",
            decimals=4,
        ),
    ]


def _cards() -> list[Panel]:
    return [
        lines(
            "Utilisation",
            [Query(_card("hw.gpu.utilization"), _LEGEND)],
            "Share of the time in which a kernel ran on each card.",
            "One card idle while others are busy: is the model split over all of them (-sm, -ts)?",
            unit="percentunit",
            at_most=1,
            empty=_NONE,
        ),
        lines(
            "Memory",
            [
                Query(_card("hw.gpu.memory.usage"), f"used {_LEGEND}"),
                Query(_card("hw.gpu.memory.limit"), f"total {_LEGEND}"),
            ],
            "Memory that processes use on each card, and its size.",
            "Used by other processes? Compare with the memory of servers below.",
            unit="bytes",
            empty=_NONE,
        ),
        lines(
            "Power",
            [
                Query(_card("hw.power"), f"drawn {_LEGEND}"),
                Query(_card("llamatel.gpu.power.limit"), f"limit {_LEGEND}"),
            ],
            "Power that each card draws, and the limit set for it.",
            "Often at the limit: decoding is bound by memory, so a lower limit costs little speed.",
            unit="watt",
            empty=_NONE,
        ),
        lines(
            "Power, from the energy counter",
            [Query(f"max by ({_DEVICE}) (rate({q.selector('hw.energy')}[{q.RATE}]))", _LEGEND)],
            "Energy a second by the driver's counter: a mean between samples, where Power is a momentary value.",
            "Use this one for costs.",
            unit="watt",
            empty=_NONE,
        ),
        lines(
            "Temperature",
            [
                Query(_card("hw.temperature"), f"now {_LEGEND}"),
                Query(_card("hw.temperature.limit"), f"slows down at {_LEGEND}"),
            ],
            "Temperature of each card, and the limit at which it slows down.",
            "Near the limit: airflow, or a lower power limit.",
            unit="celsius",
            empty=_NONE,
        ),
        lines(
            "Throttling",
            [
                Query(
                    f"max by ({_DEVICE}, reason) ({q.selector('llamatel.gpu.throttled')})", f"{{{{reason}}}} {_LEGEND}"
                )
            ],
            "1 while this reason reduces a card's clocks.",
            "thermal: cooling. power_cap: normal under full load with a power limit.",
            at_most=1,
            empty=_NONE,
        ),
        lines(
            "Clocks",
            [
                Query(f"max by ({_DEVICE}, domain) ({q.selector('llamatel.gpu.clock')})", f"{{{{domain}}}} {_LEGEND}"),
                Query(
                    f"max by ({_DEVICE}, domain) ({q.selector('llamatel.gpu.clock.limit')})",
                    f"{{{{domain}}}} at most {_LEGEND}",
                ),
            ],
            "Clocks of each card and their maximum.",
            "Low under load: see Throttling.",
            unit="hertz",
            empty=_NONE,
            size=(24, 7),
        ),
    ]


def _servers() -> list[Panel]:
    held = q.total(q.selector("llamacpp.gpu.memory.used"), f"{q.BY_SERVER}, hw_name, hw_id")
    sizes = q.total(q.selector("llamacpp.gpu.memory.size"), "part, source")
    return [
        lines(
            "Memory by server",
            [Query(held, f"{q.SERVER_LEGEND} on {_LEGEND}")],
            "Memory of each server's process on each card, by the driver.",
            "It should not grow after the load: filled contexts need no more. Report it if it does.",
            unit="bytes",
            empty=_NONE,
        ),
        lines(
            "Memory by part",
            [Query(sizes, "{{part}} {{source}}")],
            "What servers need on GPUs: weights and caches as computed, compute buffers as estimated, and what "
            "llama.cpp reported (at -lv 4).",
            "-ctk and -ctv shrink the cache, -ub the compute buffers, quantisation the weights.",
            unit="bytes",
            empty=_NONE,
        ),
        lines(
            "Layers on GPUs",
            [
                Query(
                    q.total(q.selector("llamacpp.gpu.layers"), f"{q.BY_SERVER}, type"),
                    f"{q.SERVER_LEGEND} {{{{type}}}}",
                )
            ],
            "Layers on GPUs and all layers; llama.cpp logs them at -lv 4.",
            "Fewer than all: each token waits for the CPU. A smaller quantisation may fit whole.",
            empty="Unknown at this verbosity",
        ),
    ]


def _energy() -> list[Panel]:
    return [
        lines(
            "Power of requests, by phase",
            [Query(q.rate("llamacpp.energy", "phase"), "{{phase}}")],
            "Energy of finished requests, a second, by phase. Concurrent requests get equal shares.",
            "Much prefill: caching prompts saves it.",
            unit="watt",
            stacked=True,
            empty=_NONE,
        ),
        lines(
            "Energy of a request",
            quantiles("llamacpp.request.energy", exemplars=False),
            "From its slot to its end.",
            "Long answers cost most: limit max_tokens.",
            unit=_JOULES,
            empty=_NONE,
        ),
        lines(
            "Decode energy a token",
            quantiles("llamacpp.request.output_token.energy", exemplars=False),
            "Energy of decoding one token after the first.",
            "It falls as more slots decode together.",
            unit=_JOULES,
            empty=_NONE,
        ),
    ]


def _ceiling() -> list[Panel]:
    ceiling = f"avg by (context) ({q.selector('llamacpp.decode.ceiling')})"
    return [
        lines(
            "Decode speed against the ceiling",
            [Query(f"1 / ({q.mean(TPOT)} > 0)", "a request"), Query(ceiling, "most, context {{context}}")],
            "Tokens a second that one request gets, and the most that the cards' memory bandwidth allows: with an "
            "empty context (start) and with a full one (end).",
            "Far below: many slots at once, layers on the CPU, or a throttled card.",
            unit=TOKENS_A_SECOND,
            empty=_NONE,
        ),
        lines(
            "Memory bandwidth used (MBU)",
            quantiles("llamacpp.request.bandwidth_utilization", exemplars=False),
            "Bytes that decoding read, over what the cards can read in that time, for each request.",
            "Above 0.6 is good for one request at a time; more speed needs fewer bytes: a smaller quantisation.",
            unit="percentunit",
            empty=_NONE,
        ),
        lines(
            "Arithmetic used in prefill (MFU)",
            quantiles("llamacpp.request.flops_utilization", exemplars=False),
            "Operations of prefill over the cards' dense FP16 peak in that time.",
            "Low with long prompts: a larger -ub, or -fa on.",
            unit="percentunit",
            empty=_NONE,
        ),
    ]


def dashboard() -> Dashboard:
    """The GPU dashboard."""
    return board(
        "gpu",
        "llamatel / GPU",
        "NVIDIA GPUs under llama.cpp: utilisation, memory, power, energy of requests, distance to the ceiling.",
        [
            ("", _now()),
            ("Cards", _cards()),
            ("Servers on them", _servers()),
            ("Energy", _energy()),
            ("Against the ceiling", _ceiling()),
        ],
    )
