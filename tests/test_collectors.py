"""Collectors are found through the entry point, llamatel's and those of other packages alike."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llamatel import collectors
from llamatel.errors import PipelineError, UsageError
from llamatel.records import Completion, Outcome
from tests.samples import completion


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with one collector that works and one that does not import."""
    (tmp_path / "their_energy.py").write_text(
        "from llamatel.collectors import Collector\n\n\nclass Energy(Collector):\n    name = 'energy'\n"
    )
    (tmp_path / "their_broken.py").write_text("import a_module_that_is_not_there\n")
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[llamatel.collectors]\nenergy = their_energy:Energy\nbroken = their_broken:Broken\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


OURS = ["client", "gpu", "kv_cache", "model", "prompt_cache", "requests", "router", "server", "slots", "tokens"]


def names(*only: str, without: tuple[str, ...] = ()) -> list[str]:
    return [collector.name for collector in collectors.load(only, without)]


def test_collectors_installed() -> None:
    assert names() == OURS
    assert names("tokens") == ["tokens"]
    assert names(without=("tokens",)) == OURS[:-1]


def test_collectors_unknown_name() -> None:
    with pytest.raises(UsageError, match=f"no collector 'gpus': installed are {', '.join(OURS)}"):
        names("gpus")


@pytest.mark.usefixtures("elsewhere")
def test_collectors_of_another_package(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="llamatel"):
        assert names() == sorted(["energy", *OURS])
    assert "the collector 'broken' (their_broken:Broken) cannot be loaded" in caplog.text


@pytest.mark.usefixtures("elsewhere")
def test_collectors_broken_one_requested() -> None:
    with pytest.raises(PipelineError, match="a_module_that_is_not_there"):
        names("broken")


def test_requests_collector_outcomes_start_at_zero() -> None:
    [requests] = collectors.load(("requests",))

    def counts(completion: Completion) -> dict[str | int, float]:
        totals: dict[str | int, float] = {}
        for sample in requests.on_completion(completion):
            if sample.metric == "llamacpp.requests":
                totals[sample.attributes["outcome"]] = totals.get(sample.attributes["outcome"], 0) + sample.value
        return totals

    assert counts(completion()) == {"ok": 1, "cancelled": 0, "error": 0, "context_full": 0}
    assert counts(completion(outcome=Outcome.CONTEXT_FULL)) == {"context_full": 1}
