"""How far to trust an answer: nearest molecules, bands, sets and spread, and what is kept back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import logit

from models.data.fingerprint import similarity_bits
from models.data.smiles import read_smiles
from models.domain.structures import Structure, Structures, write_structures
from service.core.answer import Answer
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.core.engine import PredictionQuery, UnsupportedQueryError
from service.core.explaining import Explained
from service.core.explanations.domain import (
    DomainExplainer,
    explain_domains,
    similarity_fingerprint,
)
from service.core.local import predict
from service.core.reading import ItemFailure
from service.explanation_schemas import TaskDomainOut
from service.schemas import ETHANOL_GRAPH, GraphIn
from tests.domains import BANDS, fingerprint_of, molecules, spellings
from tests.service.doubles import DOMAIN_TASKS, LABELS, save_pico_domains, settings_of

pytestmark = pytest.mark.anyio
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
SMILES = ["CCO", ASPIRIN, molecules()[50], "CCCCCCCCCCCC"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico_domains(tmp_path_factory.mktemp("domains") / "pico")


@pytest.fixture(scope="module")
def engine(folder: Path) -> ArtifactEngine:
    return load_engine(folder, settings_of(device="cpu"))


async def in_process(smiles: Sequence[str]) -> list[Any]:
    return [similarity_fingerprint(text) for text in smiles]


async def explain(
    engine: ArtifactEngine,
    smiles: Sequence[str] = SMILES,
    tasks: Sequence[str] = DOMAIN_TASKS,
    labels: Sequence[str] | None = None,
    structures: Structures | None = None,
) -> tuple[list[Answer], list[dict[str, Any]]]:
    query = PredictionQuery.of("pico", engine, tasks, "own")
    results = predict(query, settings_of(), list(smiles))
    answers = [result for result in results if isinstance(result, Answer)]
    assert len(answers) == len(smiles)
    explained = Explained.checked(["domain"], engine.info, query.tasks, labels)
    found = await DomainExplainer(in_process, structures)(query, answers, explained, 1e9)
    for item in found:
        for task in item.values():
            TaskDomainOut.model_validate(task)
    return answers, found


async def test_the_nearest_are_those_of_the_tasks_own_set(engine: ArtifactEngine) -> None:
    _, found = await explain(engine)
    for smiles, item in zip(SMILES, found, strict=True):
        assert list(item) == ["clintox", "tox21"]
        for task, own in item.items():
            near = engine.info.domains[task].domain.molecules.nearest(fingerprint_of(smiles), 3)
            assert [one["row"] for one in own["nearest"]] == near.rows.tolist()
            assert [one["similarity"] for one in own["nearest"]] == near.similarities.tolist()
            assert all(one.keys() == {"similarity", "row"} for one in own["nearest"])
    planted = found[2]
    assert planted["clintox"]["nearest"][0] == {"similarity": 1.0, "row": 50 + 2}
    assert planted["tox21"]["nearest"][0] == {"similarity": 1.0, "row": 50 - 40 + 2}


async def test_every_spelling_alone_and_in_any_batch(engine: ArtifactEngine) -> None:
    _, (expected,) = await explain(engine, [ASPIRIN])
    written = spellings(ASPIRIN)
    _, together = await explain(engine, [*SMILES, *written, *molecules()[:30]])
    for item in together[len(SMILES) : len(SMILES) + len(written)]:
        for task in DOMAIN_TASKS:
            assert item[task]["nearest"] == expected[task]["nearest"]
            for label, own in item[task]["labels"].items():
                wanted = expected[task]["labels"][label]
                assert own.keys() == wanted.keys()
                assert own.get("band") == wanted.get("band")
                assert own.get("spread", 0) == pytest.approx(wanted.get("spread", 0), abs=1e-4)


async def test_what_was_measured_at_that_similarity(engine: ArtifactEngine) -> None:
    answers, found = await explain(engine)
    for answer, item in zip(answers, found, strict=True):
        for task, own in item.items():
            first = LABELS[task][0]
            nearest = own["nearest"][0]["similarity"]
            band = BANDS[0] if nearest < 0.4 else BANDS[1]
            assert own["labels"][first]["band"] == {
                "from": band.start,
                "to": band.end,
                "molecules": band.molecules,
                "metric": "roc_auc",
                "score": band.score,
                "error": band.error,
                "error_of_base": band.error_of_base,
            }
            probability = float(answer.tasks[task].values[0])
            conformal = own["labels"][first]["conformal"]
            classes = [k for k, score in ((0, probability), (1, 1 - probability)) if score <= 0.6]
            classes += [1] * (0.6 < 1 - probability <= 0.7)
            assert conformal["set"] == sorted(classes)
            assert conformal["confidence"] == 0.9
            assert conformal["coverage"] == {"0": 0.91, "1": 0.88}
    assert {own["labels"][LABELS[task][0]]["band"]["from"] for task, own in found[2].items()} == {
        0.4
    }


async def test_network_and_forest_differ_in_log_odds_where_both_answer(
    engine: ArtifactEngine,
) -> None:
    answers, found = await explain(engine)
    for answer, item in zip(answers, found, strict=True):
        said = answer.tasks["clintox"].experts
        for k, label in enumerate(LABELS["clintox"]):
            expected = abs(logit(float(said["own"][k])) - logit(float(said["forest"][k])))
            spread = item["clintox"]["labels"][label]["spread"]
            assert spread == pytest.approx(expected, abs=1e-3)
        assert not any("spread" in own for own in item["tox21"]["labels"].values())


async def test_only_the_labels_asked_for(engine: ArtifactEngine) -> None:
    _, found = await explain(engine, labels=["tox21.NR-AR"])
    assert all(list(item) == ["tox21"] for item in found)
    assert all(list(item["tox21"]["labels"]) == ["NR-AR"] for item in found)
    _, found = await explain(engine, labels=["tox21.NR-ER", "tox21.SR-p53"])
    assert all(item["tox21"]["labels"] == {} for item in found), "sets did not hold; not measured"


async def test_structures_are_shown_only_where_the_terms_allow(
    engine: ArtifactEngine, tmp_path: Path
) -> None:
    smiles, domains = molecules(), engine.info.domains
    known = {
        domains["clintox"].digest: [
            (k + 2, Structure(text, {"CT_TOX": 1.0})) for k, text in enumerate(smiles[:59])
        ],
        domains["tox21"].digest: [(k + 2, Structure("C", {})) for k in range(440)],
    }
    write_structures(tmp_path / "structures.db", known)
    _, found = await explain(engine, structures=Structures(tmp_path / "structures.db"))
    for item in found:
        for near in item["clintox"]["nearest"]:
            if near["row"] < 59 + 2:
                assert near["smiles"] == smiles[near["row"] - 2]
                assert near["values"] == {"CT_TOX": 1.0}
            else:
                assert "smiles" not in near
        assert not any("smiles" in near for near in item["tox21"]["nearest"])
    named = ["clintox.FDA_APPROVED"]
    _, found = await explain(
        engine, labels=named, structures=Structures(tmp_path / "structures.db")
    )
    assert found[2]["clintox"]["nearest"][0]["values"] == {}


async def test_tasks_without_a_domain_are_absent_or_refused(engine: ArtifactEngine) -> None:
    _, found = await explain(engine, tasks=["bbbp", "tox21"])
    assert all(list(item) == ["tox21"] for item in found)
    with pytest.raises(UnsupportedQueryError, match=r"'domain' for bbbp .* knows: clintox, tox21"):
        await explain(engine, tasks=["bbbp"])


async def test_a_graph_is_refused(engine: ArtifactEngine) -> None:
    query = PredictionQuery.of("pico", engine, ["tox21"], "own")
    (answer,) = predict(query, settings_of(), [GraphIn.model_validate(ETHANOL_GRAPH)])
    assert isinstance(answer, Answer)
    explained = Explained.checked(["domain"], engine.info, query.tasks, None)
    with pytest.raises(UnsupportedQueryError, match="for a graph, which has no fingerprint"):
        await DomainExplainer(in_process)(query, [answer], explained, 1e9)


def test_a_molecule_without_a_fingerprint_has_no_explanation(engine: ArtifactEngine) -> None:
    query = PredictionQuery.of("pico", engine, DOMAIN_TASKS, "own")
    answers = [a for a in predict(query, settings_of(), SMILES[:2]) if isinstance(a, Answer)]
    explained = Explained.checked(["domain"], engine.info, query.tasks, None)
    bits = similarity_bits(read_smiles("CCO"))
    lost = ItemFailure("parse_timeout", "took too long")
    assert isinstance(similarity_fingerprint("not a molecule"), ItemFailure)
    first, second = explain_domains(engine.info, answers, [bits, lost], explained)
    assert isinstance(first, dict)
    assert second is lost


def test_probabilities_of_one_have_finite_log_odds(engine: ArtifactEngine) -> None:
    query = PredictionQuery.of("pico", engine, ["clintox"], "own")
    (answer,) = predict(query, settings_of(), ["CCO"])
    assert isinstance(answer, Answer)
    said = answer.tasks["clintox"].experts
    said["own"][:], said["forest"][:] = np.float32(1), np.float32(0)  # type: ignore[index]
    explained = Explained.checked(["domain"], engine.info, query.tasks, None)
    bits = similarity_bits(read_smiles("CCO"))
    (found,) = explain_domains(engine.info, [answer], [bits], explained)
    assert found is not None
    assert 30 < found["clintox"]["labels"]["CT_TOX"]["spread"] < 40
