"""The Python face: the numbers of the service, in a table."""

import doctest
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import gmerging
from gmerging import model as model_module
from models.errors import ArtifactError, InvalidInputError
from models.extras import MissingPackageError
from models.released import released
from service.core.artifact_engine import load_engine
from service.core.engine import UnsupportedQueryError
from service.settings import Settings
from tests.service.doubles import save_pico_forests, save_pico_graph_artifact, serving

SMILES = ["CCO", "c1ccccc1", "C1", "CC(=O)Oc1ccccc1C(=O)O", "", "C[C@H](N)C(=O)O"]


@pytest.fixture(scope="module")
def model(pico_artifact: Path) -> gmerging.Model:
    return gmerging.load(pico_artifact, device="cpu")


async def answers_over_http(artifact: Path, body: dict[str, Any]) -> list[dict[str, Any]]:
    engine = load_engine(artifact, Settings(device="cpu"))
    async with serving(engine) as client:
        response = await client.post("/predict", json=body)
    assert response.status_code == 200
    return list(response.json()["predictions"])


@pytest.mark.anyio
async def test_numbers_and_errors_are_those_of_predict(
    model: gmerging.Model, pico_artifact: Path
) -> None:
    frame = model.predict(SMILES)
    expected = await answers_over_http(pico_artifact, {"smiles": SMILES})
    for row, item in zip(frame.to_dict("records"), expected, strict=True):
        error = row.pop("error")
        if "error" in item:
            assert error == f"{item['error']['code']}: {item['error']['message']}"
            assert all(math.isnan(value) for value in row.values())
            continue
        assert error is None
        labels = {f"{t}.{k}": v for t, values in item["tasks"].items() for k, v in values.items()}
        assert list(row) == list(labels)
        assert row == pytest.approx(labels, abs=1e-6)


def test_rows_keep_the_index_of_a_series_and_the_order_of_a_list(model: gmerging.Model) -> None:
    series = pd.Series(["CCO", None, float("nan"), 5, "C"], index=list("abcde"), dtype=object)
    frame = model.predict(series, ["bbbp", "clintox"])
    assert list(frame.index) == list("abcde")
    assert list(frame.columns) == ["bbbp.p_np", "clintox.FDA_APPROVED", "clintox.CT_TOX", "error"]
    assert [error and error.split(":")[0] for error in frame["error"]] == [
        None,
        "empty_smiles",
        "empty_smiles",
        "not_text",
        None,
    ]
    assert (frame.dtypes == [np.float64] * 3 + [object]).all()
    listed = model.predict((text for text in ["CCO", "C"]), "bbbp")
    assert list(listed.index) == [0, 1]
    assert listed["bbbp.p_np"].to_list() == pytest.approx(
        frame["bbbp.p_np"].loc[["a", "e"]].to_list(), abs=1e-6
    )
    assert len(model.predict("CCO")) == 1
    assert model.predict([]).shape == (0, 7)


def test_more_molecules_than_a_group_are_answered_in_order(model: gmerging.Model) -> None:
    texts = ["C" * (k % 30 + 1) for k in range(600)]
    found = model.predict(texts, "bbbp")["bbbp.p_np"]
    single = model.predict(texts[:30], "bbbp")["bbbp.p_np"]
    assert found.to_numpy() == pytest.approx(np.tile(single, 20), abs=1e-6)


def test_it_says_what_it_is(model: gmerging.Model) -> None:
    assert (model.name, model.version, len(model.digest)) == ("pico", "0.1.0", 64)
    assert repr(model) == "Model('pico', version='0.1.0', tasks=3, labels=6)"
    assert model.tasks["tox21"].labels == ("NR-AR", "NR-ER", "SR-p53")
    assert gmerging.models() == tuple(released())
    assert "load" in dir(gmerging)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        gmerging.lode  # noqa: B018


def test_what_cannot_be_is_refused(model: gmerging.Model, tmp_path: Path) -> None:
    frame = pd.DataFrame({"smiles": ["C"]})
    for given in (frame, 5, None, b"CCO", {"smiles": "C"}):
        with pytest.raises(InvalidInputError, match=r"got .*, expected"):
            model.predict(given)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedQueryError, match="got unknown task 'nope'"):
        model.predict("C", "nope")
    with pytest.raises(InvalidInputError, match="twice"):
        model.predict("C", ["bbbp", "bbbp"])
    with pytest.raises(UnsupportedQueryError, match="forest"):
        model.predict("C", experts=["forest"])
    with pytest.raises(ArtifactError, match=r"got 'moleculenet-gnc'.*moleculenet-gcn"):
        gmerging.load("moleculenet-gnc")
    with pytest.raises(InvalidInputError, match="threads"):
        gmerging.load(threads=0)
    graphs = gmerging.load(save_pico_graph_artifact(tmp_path / "graphs"))
    with pytest.raises(UnsupportedQueryError, match="table of molecules"):
        graphs.predict("C")


@pytest.mark.anyio
async def test_explanations_are_those_of_predict(tmp_path: Path) -> None:
    artifact = save_pico_forests(tmp_path / "forests")
    found = gmerging.load(artifact, device="cpu").explain(SMILES, routing="moe")
    body = {"smiles": SMILES, "routing": "moe", "explain": ["routing", "experts"]}
    expected = await answers_over_http(artifact, body)
    routing, experts = found["routing"], found["experts"]
    good = [item for item in expected if "error" not in item]
    assert set(routing.index.get_level_values("molecule")) == {item["index"] for item in good}
    for item in good:
        for task, sites in item["routing"].items():
            for site, weights in sites.items():
                row = routing.loc[(item["index"], task, site)]
                assert dict(row) == pytest.approx(weights, abs=1e-5)
        of_item = experts[experts["molecule"] == item["index"]]
        said = {
            (row.task, row.expert, row.label): (row.weight, row.value)
            for row in of_item.itertuples()
        }
        assert said.keys() == {
            (task, expert, label)
            for task, opinions in item["experts"].items()
            for expert, opinion in opinions.items()
            for label in opinion["values"]
        }
        for (task, expert, label), (weight, value) in said.items():
            opinion = item["experts"][task][expert]
            assert weight == opinion["weight"]
            assert value == pytest.approx(opinion["values"][label], abs=1e-5)
    assert set(experts["expert"]) == {"own", "forest"}


def test_threads_may_share_a_model(model: gmerging.Model) -> None:
    expected = model.predict(SMILES)
    found: list[pd.DataFrame] = []
    threads = [
        threading.Thread(target=lambda: found.append(model.predict(SMILES))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for frame in found:
        pd.testing.assert_frame_equal(frame, expected)


def test_without_pandas_it_says_what_to_install(
    model: gmerging.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("models.extras.import_module", missing)
    with pytest.raises(MissingPackageError, match=r'pip install "g-merging\[predict\]"'):
        model.predict("C")


def test_a_module_that_a_package_lacks_is_not_explained_away() -> None:
    from models.extras import optional_package

    with pytest.raises(ModuleNotFoundError, match=r"pandas\.nothing"):
        optional_package("pandas.nothing", "a test", "predict")


def test_a_script_without_a_main_guard_works(pico_artifact: Path) -> None:
    """Nothing is started that would import the caller's script again; from a pipe there is none."""
    script = (
        "import sys, gmerging\n"
        "assert 'torch' not in sys.modules\n"
        f"model = gmerging.load({str(pico_artifact)!r}, device='cpu')\n"
        "print(len(model.predict(['CCO', 'C[C@H](N)C(=O)O'])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-"], input=script, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("2\n", "")


@pytest.mark.skipif("moleculenet-gcn" not in released(), reason="no released artifact")
def test_the_examples_of_the_docstrings() -> None:
    failed, tried = doctest.testmod(model_module)
    assert tried >= 15
    assert failed == 0


def test_contributions_of_atoms_are_those_of_predict(tmp_path: Path) -> None:
    """With trees and without, for all labels or some; the index is that of the molecules."""
    model = gmerging.load(save_pico_forests(tmp_path / "forests"), device="cpu")
    smiles = pd.Series(SMILES, index=list("abcdef"))
    plain = model.explain(smiles, ["bbbp", "clintox"])
    names = ["routing", "experts", "atoms"]
    found = model.explain(smiles, ["bbbp", "clintox"], explanations=names)
    assert set(plain) == {"routing", "experts"}
    assert set(found) == {*plain, "atoms", "sums"}
    for name, frame in plain.items():
        pd.testing.assert_frame_equal(found[name], frame)
    atoms, sums = found["atoms"], found["sums"]
    assert list(dict.fromkeys(sums["molecule"])) == ["a", "b", "d", "f"]
    whole = sums["baseline"] + sums["atoms"] + sums["other"]
    np.testing.assert_allclose(whole, sums["output"], atol=1e-5)
    answers = model.predict(smiles, ["bbbp", "clintox"])
    for row in sums.to_dict("records"):
        probability = answers.loc[row["molecule"], f"{row['task']}.{row['label']}"]
        assert row["scale"] == "log_odds"
        assert 1 / (1 + math.exp(-row["output"])) == pytest.approx(probability, abs=1e-6)
    aspirin = atoms[(atoms["molecule"] == "d") & (atoms["label"] == "CT_TOX")]
    assert sums.set_index("molecule").loc["d", "smiles"].unique() == SMILES[3]
    for _, of_expert in aspirin.groupby("expert"):
        assert list(of_expert["atom"]) == list(range(13))
    assert set(aspirin["expert"]) == {"own", "forest"}
    total = aspirin["contribution"].sum()
    expected = sums[(sums["molecule"] == "d") & (sums["label"] == "CT_TOX")]["atoms"]
    assert total == pytest.approx(expected.item())

    tasks, label = ["bbbp", "clintox"], "clintox.CT_TOX"
    some = model.explain(smiles, tasks, explanations="atoms", labels=[label])
    assert set(some["sums"]["label"]) == {"CT_TOX"}
    one = model.explain("C1", "clintox", explanations=["atoms"], labels=label)
    assert list(one["atoms"].columns) == list(atoms.columns)
    assert one["atoms"].empty
    with pytest.raises(UnsupportedQueryError, match=r"got unknown label 'bbbp\.p'"):
        model.explain("C", "bbbp", explanations="atoms", labels="bbbp.p")
    with pytest.raises(InvalidInputError, match=r"got unknown explanation 'atom'.*atoms"):
        model.explain("C", "bbbp", explanations="atom")
