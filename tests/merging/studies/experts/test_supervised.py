"""The study of supervised experts on a pico run, and its parts against slow formulas."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from merging.data.files import read_json
from merging.run.config import load_config
from merging.run.run import Run
from merging.run.scores import evaluate, plain_forward
from merging.run.stages import teacher, trained_model
from merging.studies.experts.asking import Bank, Target, leave_one_out
from merging.studies.experts.competence import Knowledge, near_accuracy, near_labels, similarity
from merging.studies.experts.metadata import bank_of
from merging.studies.experts.supervised import run_study
from merging.studies.experts.supervised_tables import (
    better_than_first,
    rank_correlation,
    row_scores,
    supervised_tables,
)
from merging.targets.probe import PENALTY
from models.domain.neighbours import MoleculeSet, packed
from models.errors import ConfigError
from tests.merging.conftest import write_pico
from tests.merging.studies.experts.pico import REGRESSIONS, regressions
from tests.pages import ROOT, page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return regressions(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def content(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_study(run, tmp_path_factory.mktemp("results") / "supervised.json")


def test_its_own_and_related_experts_are_left_out(run: Run, content: dict[str, Any]) -> None:
    assert bank_of(run, "length") == ("nitrogens", "rings", "oxygens")
    found = content["targets"]["length"]
    for measure, psi in found["competence"].items():
        ranked = found["routed"][measure]["ranked"]
        assert sorted(psi) == sorted(ranked) == sorted(bank_of(run, "length"))
        assert [psi[name] for name in ranked] == sorted(psi.values(), reverse=True)
        assert sum(found["routed"][measure]["alpha"]) == pytest.approx(1, abs=1e-3)


def test_the_own_expert_is_measured_as_everywhere(run: Run, content: dict[str, Any]) -> None:
    model = trained_model(run, teacher(run, "rings"))
    forward = plain_forward(run, "rings", model.network, model.heads["rings"])
    changed = run.dataset("rings")
    info = changed.info.model_copy(update={"metric": "spearman"})
    ranked = replace(run, _datasets={"rings": replace(changed, info=info)})
    expected = evaluate(ranked, forward, "rings")["test"]["spearman"]
    assert content["targets"]["rings"]["own"]["spearman"] == pytest.approx(expected, abs=1e-4)


def test_one_expert_is_its_own_ensemble_and_merged_expert(run: Run) -> None:
    bank = Bank.ask(Target(run, "rings"))
    found = bank.combined(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    name = list(bank.states)[1]
    single = bank.target.score(bank.asked[name].fitted, bank.asked[name].outputs)
    assert found["ensemble"] == pytest.approx(single, abs=1e-4)
    assert found["merged"] == pytest.approx(single, abs=1e-4)
    assert found["relative_error"] == pytest.approx(0, abs=1e-5)


def test_leave_one_out_is_that_of_the_fits_without_each_molecule() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 6, generator=generator), torch.randn(20, generator=generator)
    features = StandardScaler().fit_transform(x.double().numpy())
    errors = []
    for k in range(20):
        kept = np.arange(20) != k
        model = Ridge(alpha=PENALTY).fit(features[kept], y.double().numpy()[kept])
        errors.append(float(model.predict(features[k : k + 1])[0]) - float(y[k]))
    assert leave_one_out(x, y) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=2e-2)


def bits(*positions: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    row = np.zeros(1024, bool)
    row[list(positions)] = True
    return row


def test_competence_by_hand() -> None:
    words = packed(np.stack([bits(1, 2), bits(3, 4), bits(9)]))
    known = MoleculeSet.sorted(words, np.arange(3, dtype=np.int32))
    expert = Knowledge(known, np.array([5.0, 7.0, 6.0]), known, np.array([0.2, 0.4, 3.0]))
    queries = packed(np.stack([bits(1, 2), bits(3)]))
    assert similarity(expert, queries) == pytest.approx((1 + 0.5) / 2)
    # Similarities (1, 0, 0) and (0, 1/2, 0) to the three judged molecules.
    expected = [1 / 3 * 0.2 + 2 / 3, 1 / 6 * 0.4 + 5 / 6]
    assert near_accuracy(expert, queries) == pytest.approx(-np.mean(expected))
    assert near_labels(expert, queries, np.array([1.0, 2.0])) == pytest.approx(1)
    assert near_labels(expert, queries, np.array([1.0, 1.0])) == 0
    stranger = packed(bits(100)[None])
    assert near_accuracy(expert, stranger) == -1


def test_what_is_no_bank_of_regressions_is_refused(tmp_path: Path) -> None:
    config = load_config(write_pico(tmp_path))
    plain = Run(config, 0, tmp_path / "data", tmp_path / "work", torch.device("cpu"))
    with pytest.raises(ConfigError, match="expected regressions of one label in one unit"):
        run_study(plain, tmp_path / "results.json")


def test_too_few_experts_are_refused(run: Run, tmp_path: Path) -> None:
    config = run.config.model_copy(update={"tasks": REGRESSIONS[:4]})
    with pytest.raises(ConfigError, match="got too few tasks for length, expected 3"):
        run_study(replace(run, config=config), tmp_path / "results.json")


def test_rows_are_those_of_the_ranked_experts(content: dict[str, Any]) -> None:
    target = content["targets"]["rings"]
    names = target["routed"]["similarity"]["ranked"]
    found = row_scores(target, "similarity", "rmse")
    assert [found[place] for place in ("first", "second", "third")] == [
        target["experts"][name]["rmse"] for name in names[:3]
    ]
    assert found["best"] == min(expert["rmse"] for expert in target["experts"].values())
    assert "own" not in row_scores(target, "similarity", "own_head")


def test_tables(content: dict[str, Any]) -> None:
    for table in supervised_tables(content).values():
        assert len({line.count("|") for line in table.split("\n")}) == 1
    found = [{"first": 0.5, "second": 0.6}, {"first": 0.5, "second": 0.4}]
    assert better_than_first(found, "second") == "1/2 (+0.000 ± 0.100)"
    experts = {
        name: {"spearman": score} for name, score in zip("abc", (0.1, 0.2, 0.3), strict=True)
    }
    ranked = {"competence": {"near": {"a": 1.0, "b": 3.0, "c": 2.0}}, "experts": experts}
    assert rank_correlation([ranked], "near", "spearman") == pytest.approx(0.5)


def test_page_shows_the_results() -> None:
    found = read_json(ROOT / "results/neighbours/supervised-experts.json")
    assert found is not None
    text = page("expert-merging.md").read_text()
    for table in supervised_tables(found).values():
        assert table in text
