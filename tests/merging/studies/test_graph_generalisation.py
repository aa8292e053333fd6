import json
from pathlib import Path

import pytest

from merging.data.files import write_json
from merging.run.run import Run
from merging.studies.graph_generalisation import CANDIDATES, accuracies_table, run_study
from tests.merging.graph_files import TRAINING, make_config
from tests.merging.structures import write_collection, write_network

NETWORK = {"kind": "pyg_gin", "in_dim": 49, "num_layers": 2, "hidden_dim": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("structures")
    write_network(found / "net", 60)
    return found


def test_all_methods_are_measured_and_summarised(folder: Path) -> None:
    ego = {"kind": "ego", "folder": "net", "labels": ["a", "b"], "above_median": True, "hops": 9}
    tasks = {"net": ego, "rings": write_collection(folder, "text", 40)}
    alignment = {"rank": 2, "epochs": 2, "batch_size": 16}
    one_pass = {"rank": 2, "epochs": 2, "batch_size": 16}
    settings = {"training": TRAINING | {"epochs": 3}, "alignment": alignment, "one_pass": one_pass}
    config = make_config(tasks, network=NETWORK, **settings)
    runs = [Run(config, seed, folder, folder / "work") for seed in (0, 1)]
    path = folder / "results.json"
    content = run_study(runs, path, runs[0].build)
    assert json.loads(path.read_text()) == {config.setting: content}
    summary = content["summary"]
    corrected = "gmerging_own", "gmerging_moe", "routed_merged", "one_pass"
    assert list(summary) == ["finetuned", "probe", "probe_random", *CANDIDATES, *corrected]
    for method in summary.values():
        assert set(method["tasks"]) == {"net", "rings"}
        assert len(method["average"]["values"]) == 2
    seeds = content["seeds"]
    assert seeds["0"]["task_arithmetic"]["merge"]["options"]["scaling"] > 0
    assert accuracies_table(content).count("\n") == len(summary) + 1
    before = path.read_bytes()
    write_json(path, {"another": 1})
    run_study(runs, path, runs[0].build)
    assert json.loads(path.read_text()) == {"another": 1} | json.loads(before)
