"""Every query of every panel and variable against a real Prometheus that scrapes real servers under load.

Cases that cannot occur here (a router, a draft model) come from a second target: the real collectors and the real
exporter on made-up records. ``NOT_HERE`` lists those metrics with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from llamatel.gpu.nvml import Nvml
from llamatel.llama import parse_gguf_header
from llamatel.metrics import METRICS, Kind
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.shape_from_gguf import shape_from_gguf
from llamatel.records import Access, ClientCall, Outcome, RequestGpu
from llamatel.snapshots import Placement
from llamatel.telemetry.prometheus_names import prometheus_name
from llamatel.ui.objectives import Objectives
from llamatel_dashboards import rules
from llamatel_dashboards.queries import without_native
from llamatel_dashboards.rule_options import RuleOptions
from tests.dashboard_queries import PanelQuery, interpolate, panel_queries, selectors, variable_queries
from tests.load import Answer, Clients, completion, mixed_load
from tests.nvml import Recorded
from tests.parts import Prometheus, free_port, wait_until
from tests.parts.monitoring import VictoriaMetrics, sid_program, vmalert
from tests.parts.processes import Child
from tests.prometheus_series import prometheus_series
from tests.samples import SERVER, START_TIME, known_snapshot, model_snapshot, server_snapshot, snapshot
from tests.samples import completion as record
from tests.telemetry import Telemetry, telemetry

pytestmark = pytest.mark.slow

REAL, MADE_UP = "real", "made-up"
VICTORIA = "VictoriaMetrics"
STORES = ("Prometheus 2", "Prometheus 3", "Prometheus 3, NHCB", VICTORIA)
"""NHCB: Prometheus converts classic histograms at scrape, so that there are no ``_bucket`` series (wild.md D4)."""
CONTEXT, SLOTS = 1024, 4
LOST = "a prompt that is lost from the cache " * 20
BYTES_A_TOKEN = 2 * 2 * 2 * 16 * 2
"""Keys and values, two layers, two heads of 16 elements of 2 bytes: the tiny model's dimensions."""
NOT_HERE = {
    "llamacpp.speculative.tokens": "no draft model: nothing is drafted",
    "llamacpp.prompt_cache.entries": "llama.cpp logs it at -lv 4 only",
    "llamacpp.prompt_cache.size": "llama.cpp logs it at -lv 4 only",
    "llamacpp.model.state": "no router",
    "llamacpp.model.loads": "no router",
    "llamacpp.model.evictions": "no router",
    "llamacpp.request.outside.duration": "no Ollama",
    "llamacpp.model.failures": "no router",
    **{
        row.name: "no GPU"
        for row in METRICS
        if row.name.startswith(("hw.", "llamatel.gpu.", "llamacpp.gpu.", "llamacpp.energy"))
    },
    "llamacpp.request.energy": "no GPU",
    "llamacpp.request.output_token.energy": "no GPU",
    "llamacpp.request.bandwidth_utilization": "no GPU",
    "llamacpp.request.flops_utilization": "no GPU",
    "llamacpp.decode.ceiling": "no GPU",
    **{row.name: "no call by LlamaCppClient" for row in METRICS if row.name.startswith("gen_ai.client.")},
}
"""Metrics that these servers do not have, and why; tested on made-up records."""
ON_EVENTS = {
    "llamatel.label_values.limited": "no label has too many values",
    "llamatel.spans.exported": "no OTLP endpoint",
    "llamatel.unloads.unread": "no router without its log",
}
"""Metrics whose first series appears with an event that does not happen here."""
NORMALLY_ZERO = {"Plan error", "Log lost"}
SIGNED = {"Planned against reported"}
"""Panels with figures that may be below zero."""
H100 = json.loads((Path(__file__).parent / "data" / "nvml_h100.json").read_text())
HELD = H100["recorded"]["server"]["process_bytes"]
RUNNING = [{"pid": SERVER.pid, "usedGpuMemory": HELD}]
PLACED = Placement(gpu_layers=3, total_layers=3)
TAKEN = RequestGpu(
    energy_j=30.0, prefill_j=10.0, decode_j=20.0, output_j_per_token=1.0, cost=0.001, bandwidth_utilization=0.5,
    flops_utilization=0.3,
)  # fmt: skip
ACCESS = Access(START_TIME - 1.0, START_TIME + 1.5, "POST", "/api/chat", 200)
CALLED = ClientCall(
    "key", None, SERVER, "chat", START_TIME, START_TIME, START_TIME + 1.5, Outcome.OK, first_chunk_at=START_TIME + 0.5,
    chunk_gaps=(0.05, 0.06), input_tokens=40, output_tokens=21,
)  # fmt: skip
QUERIES = list(panel_queries())
SERIES = prometheus_series() | {prometheus_name(row): row for row in METRICS if row.kind is Kind.HISTOGRAM}
OWN = {"up", "ALERTS", "ALERTS_FOR_STATE"}
"""Series that Prometheus generates."""
RULES = RuleOptions(Objectives(ttft_s=0.001, error_rate=0.001, min_requests=1, lost_prefill_s=1e-6))
"""Objectives that this load misses."""


class Store(Protocol):
    """Prometheus or VictoriaMetrics."""

    def api(self, path: str, **parameters: str | float) -> Any:
        """``data`` of a response of the HTTP API."""

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """An instant query's vector."""


@dataclasses.dataclass(frozen=True, slots=True)
class Observed:
    """The load, and the stores that scraped it."""

    stores: dict[str, Store]
    answers: list[list[Answer]]
    """Of each server, in order."""
    ports: list[int]
    started_at: float
    finished_at: float

    @property
    def prometheus(self) -> Store:
        """Debian's Prometheus 2, with classic histograms."""
        return self.stores[STORES[0]]

    @property
    def window(self) -> str:
        """As Grafana's ``$__range``: from before the load until after it."""
        return f"{math.ceil(self.finished_at - self.started_at)}s"

    def range(self, expr: str, store: str = "") -> list[tuple[dict[str, str], list[float]]]:
        """The series of a query over the time of the load, without NaN."""
        source = self.stores[store] if store else self.prometheus
        data = source.api("query_range", query=expr, start=self.started_at, end=self.finished_at, step=1)
        # A native histogram (for a heatmap) has its own format: use its count.
        series = [
            (
                row["metric"],
                [float(value) for _, value in row.get("values", ())]
                + [float(value["count"]) for _, value in row.get("histograms", ())],
            )
            for row in data["result"]
        ]
        numbers = [(labels, [value for value in values if not math.isnan(value)]) for labels, values in series]
        return [(labels, values) for labels, values in numbers if values]

    def instant(self, expr: str, store: str = "") -> dict[str, float]:
        """A query's result after the load, by server's port ("" for a single result)."""
        source = self.stores[store] if store else self.prometheus
        rows = source.api("query", query=expr, time=self.finished_at)["result"]
        return {row["metric"].get("server_port", ""): float(row["value"][1]) for row in rows}

    def panel(self, dashboard: str, panel: str, part: str = "", store: str = "", **variables: str) -> dict[str, float]:
        """The result of a panel's query after the load, for the real servers."""
        found = [
            query
            for query in QUERIES
            if (query.dashboard, query.panel) == (dashboard, panel) and part in query.expr + query.legend
        ]
        sent = {query.sent(job=REAL, __range=self.window, __rate_interval=self.window, **variables) for query in found}
        [expr] = sent
        return self.instant(without_native(expr) if store == VICTORIA else expr, store)


def _serve(model: Path, port: int, metrics: int, log: Path, *more: str) -> Child:
    arguments = ["serve", str(model), "--port", str(port), "--metrics-addr", f"127.0.0.1:{metrics}", "-np", str(SLOTS)]
    arguments += ["-c", str(SLOTS * CONTEXT), "-ub", "64", "--backend", "xllamacpp", *more]
    return Child([sys.executable, "-m", "llamatel.cli.main", *arguments], log)


def _ready(server: Child) -> bool:
    return "ready after" in server.output()


SCRAPE_S = 1
QUIET_S = 3
"""A pause before and after the load, so that an increase covers all of it even where scrapes are late."""


def _made_up(running: Telemetry, ending: threading.Event, shape: ModelShape) -> None:
    """Keep counting metrics that no server here has. The GPU is a recorded one."""
    driver = Nvml(Recorded(H100["idle"], {"nvmlDeviceGetComputeRunningProcesses(0)": RUNNING}))
    [card] = driver.read()
    driver.close()
    turn = 0
    while not ending.wait(0.2):
        turn += 1
        counters = {
            **server_snapshot().counters,
            "tokens_predicted_total": 20.0 * turn,
            "spec_decode_num_draft_tokens_total": 8.0 * turn,
            "spec_decode_num_accepted_tokens_total": 6.0 * turn,
        }
        running.state = snapshot(
            known_snapshot(counters=counters, placement=PLACED, model=shape),
            model_snapshot(),
            records_dropped={"queue_full": turn},
            devices=(dataclasses.replace(card, memory_used=HELD, energy_j=100.0 * turn),),
        )
        running.send(record(gpu=TAKEN, access=ACCESS))
        running.call(CALLED)


@pytest.fixture(scope="module")
def observed(tiny_model: Path, promtool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("dashboards")
    ports, metrics = [free_port(), free_port()], [free_port(), free_port()]
    kinds = [("--kv-unified",), ("--no-kv-unified",)]
    servers = [
        _serve(tiny_model, *both, folder / f"{number}.log", *kinds[number])
        for number, both in enumerate(zip(ports, metrics, strict=True))
    ]
    ending = threading.Event()
    shape = shape_from_gguf(parse_gguf_header(tiny_model, read_tensors=True))
    try:
        with telemetry(metrics_addr="127.0.0.1:0") as made_up:
            counting = threading.Thread(target=_made_up, args=(made_up, ending, shape))
            counting.start()
            assert made_up.pipeline.metrics_url is not None
            other = made_up.pipeline.metrics_url.removeprefix("http://").removesuffix("/metrics")
            targets = {REAL: [f"127.0.0.1:{port}" for port in metrics], MADE_UP: [other]}
            for server in servers:
                server.wait_ready(partial(_ready, server), 60)
            with _stores(targets, folder) as stores:
                started_at, answers = _under_load(stores, ports)
                ending.set()
                counting.join()
                yield _settled(stores, ports, answers, started_at)
    finally:
        ending.set()
        for server in servers:
            server.stop()


@contextlib.contextmanager
def _stores(targets: dict[str, list[str]], folder: Path) -> Iterator[dict[str, Store]]:
    """All stores, scraping the same targets and evaluating the same rules without ``for``."""
    rules_folder = folder / "rules"
    rules_folder.mkdir()
    for name, content in rules.groups(RULES).items():
        for rule in content["groups"][0]["rules"]:
            rule.pop("for", None)
        (rules_folder / name).write_text(rules.to_yaml(content))
    every = f"{SCRAPE_S}s"
    jobs = [
        {"job_name": job, "static_configs": [{"targets": addresses, "labels": {"cluster": "lab", "namespace": job}}]}
        for job, addresses in targets.items()
    ]
    times: dict[str, Any] = {"scrape_interval": every, "scrape_timeout": every}
    scrape = {"global": times, "scrape_configs": jobs}
    timed: dict[str, Any] = {**times, "evaluation_interval": every}
    config = {"global": timed, "scrape_configs": jobs, "rule_files": [f"{rules_folder}/*.yml"]}
    converted: dict[str, Any] = {**config, "global": {**timed, "convert_classic_histograms_to_nhcb": True}}
    newest = sid_program("prometheus")
    with contextlib.ExitStack() as stack:
        found: dict[str, Store] = {}
        for name, content, program in zip(STORES, (config, config, converted), (None, newest, newest), strict=False):
            features = "exemplar-storage" if program is None else "exemplar-storage,native-histograms"
            running = Prometheus(content, folder / name.replace(" ", "-"), program=program, features=features)
            found[name] = stack.enter_context(running)
        victoria = stack.enter_context(VictoriaMetrics(folder / "victoria", scrape))
        found[VICTORIA] = victoria
        stack.callback(vmalert(victoria, rules_folder, folder / "vmalert").stop)
        yield found


def _under_load(stores: dict[str, Store], ports: list[int]) -> tuple[float, list[list[Answer]]]:
    """Send the load; return its start time and the responses of each server."""
    clients = [Clients(f"http://127.0.0.1:{port}") for port in ports]
    for each in clients:
        # Prometheus computes an increase only for series that it has scraped before.
        assert each.send(completion("Hello", 4)).outcome == "ok"
    _scraped(stores, len(ports))
    started_at = time.time()
    # One choice each: with several, llama.cpp returns the figures of only one.
    loads = [
        [
            request
            for request in mixed_load(75, context=CONTEXT, seed=seed)
            if request.expect != "refused" and request.choices == 1
        ]
        for seed in (1, 2)
    ]
    answers: list[list[Answer]] = [[], []]
    threads = [
        threading.Thread(target=lambda n=number: answers[n].extend(clients[n].send_all(loads[n], at_once=6)))
        for number in range(len(ports))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each, own in zip(clients, answers, strict=True):
        # The slot has the whole prompt, and the client switches reuse off: all of it is computed again.
        own += [each.send(completion(LOST, 4)), each.send(completion(LOST, 4, cache_prompt=False))]
        each.close()
    return started_at, answers


def _settled(stores: dict[str, Store], ports: list[int], answers: list[list[Answer]], started_at: float) -> Observed:
    finished_at = _scraped(stores, len(ports) + sum(map(len, answers)))
    return Observed(stores, answers, ports, started_at - QUIET_S, finished_at)


def _scraped(stores: dict[str, Store], requests: int) -> float:
    """Wait until every store has that many requests of the real servers for a while; a time at which all know them."""
    counted = f'sum(llamacpp_requests_total{{job="{REAL}"}}) == {requests}'
    wait_until(lambda: all(store.query(counted) for store in stores.values()), 30, "requests are scraped", every=0.2)
    time.sleep(QUIET_S)
    known: list[float] = []

    def complete() -> bool:
        """A scrape that started earlier and fails would still mark its target's series as stale."""
        known.append(time.time() - SCRAPE_S)
        answers = [store.api("query", query=f"sum(up) == 3 and {counted}", time=known[-1]) for store in stores.values()]
        return all(answer["result"] for answer in answers)

    wait_until(complete, 60, "every target answers a scrape", every=0.2)
    return known[-1]


def _metrics(query: PanelQuery) -> set[str]:
    return {SERIES[name].name for name, _ in selectors(query.sent()) if name not in OWN}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_panel_query_result_kind(query: PanelQuery, store: str, observed: Observed) -> None:
    absent = _metrics(query) & set(NOT_HERE)
    job = MADE_UP if absent else REAL
    sent = query.sent(job=job, __range=observed.window, __rate_interval="5s")
    series = observed.range(without_native(sent) if store == VICTORIA else sent, store)
    if _metrics(query) & set(ON_EVENTS):
        return  # the store accepted the query
    assert series, f"no answer: {sent}"
    values = [value for _, each in series for value in each]
    assert all(map(math.isfinite, values))
    if query.panel not in SIGNED:
        assert min(values) >= 0 or (set(values) >= {-1} and "-group(" in query.expr)
    if query.unit == "percentunit":
        assert max(values) <= 1 + 1e-9
    if query.unit == "bytes" and query.panel not in NORMALLY_ZERO:
        assert max(values) >= 1024


def test_metrics_listed_as_absent(observed: Observed) -> None:
    names = {name for name, row in SERIES.items() if row.name in NOT_HERE}
    assert set(NOT_HERE) <= {row.name for row in METRICS}
    here = {
        name for name in names if any(value for _, value in observed.prometheus.query(f'{name}{{job="{REAL}"}} > 0'))
    }
    assert not here


@pytest.mark.parametrize(("name", "selector", "label"), sorted(set(variable_queries())))
def test_dashboard_variable_values(name: str, selector: str, label: str, observed: Observed) -> None:
    found = observed.prometheus.api(f"label/{label}/values", **{"match[]": interpolate(selector, job=REAL)})
    expected = {
        "cluster": {"lab"},
        "namespace": {REAL, MADE_UP},
        "job": {REAL, MADE_UP},
        "server": {"127.0.0.1"},
        "port": set(map(str, observed.ports)),
        "model": {"tiny.gguf"},
    }
    if name == "instance":
        assert len(found) == 2
    else:
        assert set(found) == expected[name]


def test_dashboard_server_variable_filters(observed: Observed) -> None:
    chosen = str(observed.ports[0])
    for query in QUERIES:
        if not _metrics(query) & set(NOT_HERE) and "server_port" in query.legend:
            sent = query.sent(job=REAL, port=chosen, __range=observed.window, __rate_interval="5s")
            assert {labels["server_port"] for labels, _ in observed.range(sent)} <= {chosen}


def _timings(observed: Observed) -> list[dict[str, Any]]:
    """llama.cpp's timings in the responses of completed requests."""
    return [answer.timings[-1] for answers in observed.answers for answer in answers if answer.outcome == "ok"]


def test_panels_requests_and_failures_equal_clients(observed: Observed) -> None:
    sent = {str(port): float(len(answers)) for port, answers in zip(observed.ports, observed.answers, strict=True)}
    everything = [answer for answers in observed.answers for answer in answers]
    failed = sum(answer.outcome == "error" for answer in everything)
    assert failed >= 4
    [(_, counted)] = observed.prometheus.query(f'sum(llamacpp_requests_total{{job="{REAL}", outcome="error"}})')
    assert counted == failed
    # Prometheus extrapolates an increase to the ends of its window, a little more for one server than for the other.
    [share] = observed.panel("overview", "Failed").values()
    assert share == pytest.approx(failed / len(everything), rel=0.1)
    rates = observed.panel("fleet", "Requests by server")
    assert {port: rate * float(observed.window[:-1]) for port, rate in rates.items()} == pytest.approx(sent, rel=0.2)


@pytest.mark.parametrize("store", STORES)
def test_panels_phases_equal_responses(store: str, observed: Observed) -> None:
    timings = _timings(observed)
    assert len(timings) > 40
    for phase, figure in (("prefill", "prompt_ms"), ("decode", "predicted_ms")):
        mean = statistics.mean(each[figure] / 1e3 for each in timings)
        # The last choice's timings stand for all choices of an answer, and over a window Prometheus extrapolates sum
        # and count each by itself; to the digit they are compared in test_counts_match_llama_cpp.py.
        [reported] = observed.panel("requests", "Mean time by phase", f"request_{phase}_duration", store).values()
        assert reported == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize("store", STORES)
def test_panels_burn_rate_equals_responses(store: str, observed: Observed) -> None:
    [buckets] = [row.buckets for row in METRICS if row.name == "gen_ai.server.time_per_output_token"]
    tpot = [
        each["predicted_ms"] / 1e3 / (each["predicted_n"] - 1) for each in _timings(observed) if each["predicted_n"] > 1
    ]
    objective = min(buckets, key=lambda bound: abs(statistics.median(tpot) - bound))
    [rate] = observed.panel("overview", "TPOT burn rate", store=store, tpot_objective=f"{objective:g}").values()
    missed = sum(value > objective for value in tpot) / len(tpot)
    assert rate * 0.05 == pytest.approx(missed, abs=0.05)


@pytest.mark.parametrize("store", STORES)
def test_panels_quantile_within_client_times(store: str, observed: Observed) -> None:
    [buckets] = [row.buckets for row in METRICS if row.name == "gen_ai.server.request.duration"]
    answers = [answer for each in observed.answers for answer in each]
    # llamatel's figure lacks a wait that is unknown, next to requests that fail.
    worked = [(each["prompt_ms"] + each["predicted_ms"]) / 1e3 for each in _timings(observed)]
    worked += [0.0] * (len(answers) - len(worked))
    # The servers' buckets weigh a little more or less by extrapolation: the 95th percentile is not to the request.
    least, most = sorted(worked)[int(len(worked) * 0.9)], max(answer.seconds for answer in answers)
    [reported] = observed.panel("overview", "Request duration", "p95", store).values()
    assert max((bound for bound in buckets if bound < least), default=0.0) <= reported
    assert reported <= min((bound for bound in buckets if bound > most), default=math.inf)


def test_panels_cached_prompt_tokens_equal_responses(observed: Observed) -> None:
    timings = _timings(observed)
    cached = sum(each["cache_n"] for each in timings)
    share = cached / (cached + sum(each["prompt_n"] for each in timings))
    [reported] = observed.panel("overview", "Prefix cache hits").values()
    assert reported == pytest.approx(share, abs=0.1)  # llama.cpp's counters have those of cancelled requests too


def test_panels_kv_pool_as_configured(observed: Observed) -> None:
    assert observed.panel("kv_cache", "Capacity") == {"": 2 * SLOTS * CONTEXT}
    [headroom] = observed.panel("overview", "KV headroom, fullest").values()
    assert headroom == 1  # all requests have finished
    used = [query for query in QUERIES if query.where == "kv_cache: The pool in tokens" and query.legend == "{{state}}"]
    series = observed.range(used[0].sent(job=REAL))
    active = next(values for labels, values in series if labels["state"] == "active")
    assert 0 < max(active) <= 2 * SLOTS * CONTEXT
    by_source = observed.prometheus.query(f'sum by (source) (llamacpp_kv_cache_size_bytes{{job="{REAL}"}})')
    sizes = {labels["source"]: value for labels, value in by_source}
    assert sizes == dict.fromkeys(("planned", "reported"), 2 * SLOTS * CONTEXT * BYTES_A_TOKEN)


def test_panels_drafts_energy_and_router(observed: Observed) -> None:
    [energy] = [query for query in QUERIES if query.where == "gpu: Energy a token"]
    # At the first scrape one of the two may be a turn ahead; at the last both stand still.
    [(_, values)] = observed.range(energy.sent(job=MADE_UP, __range=observed.window))
    assert values[-1] == pytest.approx(30 / 20, rel=0.1)
    [accepted] = [query for query in QUERIES if query.panel == "Draft tokens accepted"]
    [(_, values)] = observed.range(accepted.sent(job=MADE_UP, __rate_interval="5s"))
    assert values[-1] == pytest.approx(0.75)
    [state] = [query for query in QUERIES if query.panel == "A router's models by state"]
    [(labels, values)] = observed.range(state.sent(job=MADE_UP))
    assert (labels["state"], set(values)) == ("unloaded", {1.0})


@pytest.mark.parametrize("store", STORES)
def test_rules_record_and_fire_live(store: str, observed: Observed) -> None:
    """An objective that every request missed: the recorded share is 1 and its alert fires with any histogram type."""
    source = observed.stores[store]

    def lately(series: str) -> list[tuple[dict[str, str], float]]:
        """Its last values, also where the load was long ago."""
        return source.query(f"last_over_time({series}[30m])")

    def lost() -> set[tuple[str, str, str]]:
        found = lately(f'ALERTS{{alertname="LlamacppPrefixReuseLost", alertstate="firing", job="{REAL}"}}')
        return {(labels["server_port"], labels["cause"], labels["namespace"]) for labels, _ in found}

    def recorded() -> list[tuple[dict[str, str], float]]:
        return lately(f'llamacpp:ttft_missed:ratio_rate5m{{job="{REAL}"}}')

    def firing() -> list[tuple[dict[str, str], float]]:
        return lately(f'ALERTS{{alertstate="firing", job="{REAL}"}}')

    def names() -> set[tuple[str, str]]:
        return {(labels["alertname"], labels["severity"]) for labels, _ in firing()}

    ports = set(map(str, observed.ports))
    wait_until(lambda: {labels["server_port"] for labels, _ in recorded()} == ports, 60, "both servers' shares")
    for labels, missed in recorded():
        assert missed > 0.9
        assert (labels["cluster"], labels["namespace"]) == ("lab", REAL)
    burning = {("LlamacppTtftObjectiveFastBurn", "critical"), ("LlamacppTtftObjectiveSlowBurn", "warning")}
    wait_until(lambda: burning | {("LlamacppRequestsFailing", "warning")} <= names(), 60, "the alerts")
    # The last request's; prompts that are repeated lose their slots, too.
    expected = {(str(port), "cache_prompt_off", REAL) for port in observed.ports}
    wait_until(lambda: expected <= lost(), 60, "an evaluation after the last request")
    assert {cause for _, cause, _ in lost()} <= {"cache_prompt_off", "slot_taken", "prefix_changed"}
    assert all(labels["namespace"] == REAL for labels, _ in firing())


def test_panels_prefill_lost_equals_responses(observed: Observed) -> None:
    for port, answers in zip(observed.ports, observed.answers, strict=True):
        [timings] = answers[-1].timings
        of = f'{{job="{REAL}", server_port="{port}", cause="cache_prompt_off"}}'
        [(_, tokens)] = observed.prometheus.query(f"llamacpp_prompt_cache_recomputed_total{of}")
        [(_, lost_s)] = observed.prometheus.query(f"llamacpp_prompt_cache_recompute_duration_seconds_total{of}")
        assert tokens == pytest.approx(timings["prompt_n"], abs=1)
        assert lost_s == pytest.approx(timings["prompt_ms"] / 1e3, rel=0.02)


def test_stores_native_histograms_only_where_converted(observed: Observed) -> None:
    buckets = f'count(gen_ai_server_time_to_first_token_seconds_bucket{{job="{REAL}"}})'
    assert [bool(observed.stores[store].query(buckets)) for store in STORES] == [True, True, False, True]
