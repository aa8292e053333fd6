"""The study of tied adapters on a pico run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merging.data.files import read_json
from merging.run.models import shared_model
from merging.run.one_pass import one_pass, stream_of
from merging.run.run import Run
from merging.run.scores import predict_subset, unified_forward
from merging.studies.experts.competence import correlation
from merging.studies.experts.tied import measure, run_study, tied_stream, variant_names
from merging.studies.experts.tied_tables import target_gains, tied_tables
from models.errors import ConfigError
from models.experts.unified import Routing, UnifiedModel
from tests.merging.studies.experts.pico import REGRESSIONS, regressions
from tests.pages import ROOT, page

ONE_PASS = {"rank": 4, "epochs": 8, "batch_size": 16}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    router = {"top_k": 3, "graph_temperature": 0.01}
    return regressions(tmp_path_factory.mktemp("tied"), one_pass=ONE_PASS, router=router)


@pytest.fixture(scope="module")
def content(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_study(run, [0, 1], tmp_path_factory.mktemp("results") / "tied.json")


def test_untied_with_a_draw_for_each_task_is_joint_alignment(run: Run) -> None:
    untied = run.result(tied_stream(run, "own/none", run.seed)).tensors
    expected = run.result(one_pass(run)).tensors
    assert untied.keys() == expected.keys()
    assert all(torch.equal(untied[key], value) for key, value in expected.items())


def test_ties_change_adapters_and_every_seed_is_another(run: Run) -> None:
    found = {
        (name, seed): run.result(tied_stream(run, name, seed)).tensors["tasks/rings/graph.down"]
        for name in ("same/none", "same/kdem_strong", "same/ppem_strong")
        for seed in (0, 1)
    }
    values = list(found.values())
    assert not any(
        torch.equal(one, other) for one in values for other in values if one is not other
    )


@pytest.mark.parametrize(("row", "routing"), [("all_ensemble", "moe"), ("all_merged", "merged")])
def test_answers_are_those_that_are_served(run: Run, row: str, routing: Routing) -> None:
    backbone, experts = shared_model(run)
    served = UnifiedModel(backbone, experts, run.config.routing)
    trained = run.result(one_pass(run))
    found = measure(run, stream_of(run, trained), trained.record)
    for task in ("rings", "oxygens"):
        forward = unified_forward(run, served, task, routing)
        outputs, labels = predict_subset(run, forward, task, "test")
        expected = correlation(outputs[:, 0].double().numpy(), labels[:, 0].double().numpy())
        assert found["tests"][task][row] == pytest.approx(expected, abs=1e-4)


def test_what_is_measured(content: dict[str, Any]) -> None:
    assert list(content["measured"]) == ["0", "1"]
    for seed in content["measured"].values():
        assert tuple(seed) == variant_names()
        for record in seed.values():
            assert tuple(record["tests"]) == REGRESSIONS
            distance = record["distance"]
            assert (
                0
                < distance["all"]["own_alpha"]
                == pytest.approx(distance["all"]["largest_alpha"], abs=1e-4)
            )
            assert distance["strangers"]["own_alpha"] == 0
            assert distance["all"]["subtracted"] > 0
    strong = content["settings"]["variants"]["same/ppem_strong"]
    assert strong["beta"] < 1
    assert strong["gamma"] == 0


def test_gains_are_differences_of_means_over_seeds(content: dict[str, Any]) -> None:
    seeds = [seed["same/none"] for seed in content["measured"].values()]
    others = [seed["same/kdem_strong"] for seed in content["measured"].values()]
    by_hand = [
        sum(
            one["tests"][task]["own"] - other["tests"][task]["none"]
            for one, other in zip(seeds, others, strict=True)
        )
        / 2
        for task in REGRESSIONS
    ]
    assert target_gains(seeds, "own", others, "none") == pytest.approx(by_hand)


def test_tables(content: dict[str, Any]) -> None:
    for table in tied_tables(content).values():
        lines = table.split("\n")
        assert len({line.count("|") for line in lines}) == 1
        assert len(lines) == 2 + len(variant_names())


def test_a_run_without_joint_alignment_is_refused(run: Run, tmp_path: Path) -> None:
    config = run.config.model_copy(update={"one_pass": None})
    with pytest.raises(ConfigError, match="one_pass: got no such section"):
        run_study(replace(run, config=config), [0], tmp_path / "results.json")


def test_page_shows_the_results() -> None:
    found = read_json(ROOT / "results/neighbours/tied-adapters.json")
    assert found is not None
    text = page("expert-merging.md").read_text()
    for table in tied_tables(found).values():
        assert table in text
