"""The table of how far to trust answers has what the service says."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import gmerging
from service.core.artifact_engine import load_engine
from service.core.engine import UnsupportedQueryError
from tests.domains import molecules
from tests.service.doubles import DOMAIN_TASKS, save_pico_domains, serving, settings_of

pytestmark = pytest.mark.anyio
SMILES = ["CCO", molecules()[50]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico_domains(tmp_path_factory.mktemp("domains") / "pico")


def frame_of(folder: Path, tasks: tuple[str, ...]) -> pd.DataFrame:
    model = gmerging.load(folder, device="cpu")
    smiles = pd.Series(SMILES, index=[f"m{k}" for k in range(len(SMILES))])
    return model.explain(smiles, tasks, explanations="domain")["domain"]


def told(value: Any) -> Any:
    return None if isinstance(value, float) and pd.isna(value) else value


async def test_a_row_by_molecule_task_and_label(folder: Path) -> None:
    frame = frame_of(folder, DOMAIN_TASKS)
    assert len(frame) == 2 * (2 + 3)
    async with serving(load_engine(folder, settings_of(device="cpu"))) as client:
        body = {"smiles": SMILES, "tasks": list(DOMAIN_TASKS), "explain": ["domain"]}
        items = (await client.post("/predict", json=body)).json()["predictions"]
    for row in frame.to_dict("records"):
        task = items[int(row["molecule"][1:])]["domain"][row["task"]]
        own = task["labels"].get(row["label"], {})
        assert (row["similarity"], row["row"]) == tuple(task["nearest"][0].values())
        band, conformal = own.get("band", {}), own.get("conformal", {})
        for name in ("from", "to", "molecules", "metric", "score", "error", "error_of_base"):
            assert told(row[f"band_{name}"]) == band.get(name)
        assert told(row["conformal"]) == conformal.get("set")
        assert told(row["coverage"]) == conformal.get("coverage")
        assert told(row["spread"]) == pytest.approx(own.get("spread"), abs=1e-4)


def test_tasks_without_a_domain_have_no_rows(folder: Path) -> None:
    assert set(frame_of(folder, ("bbbp", "tox21"))["task"]) == {"tox21"}
    with pytest.raises(UnsupportedQueryError, match="'domain' for bbbp"):
        frame_of(folder, ("bbbp",))
