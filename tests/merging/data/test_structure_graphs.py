import gzip
import itertools
import json
from pathlib import Path

import pytest
import torch

from merging.data.structure_graphs import (
    CollectionSpec,
    EgoSpec,
    fold_split,
    labelled_graphs,
    read_structures,
    structure_task,
)
from models.data.structural import STRUCTURAL_FEATURES
from models.errors import DataError
from tests.merging.structures import write_collection, write_network

HALVES = ("low", "high")


def ego(**changes: object) -> EgoSpec:
    return EgoSpec.model_validate({"folder": "net", "labels": HALVES, **changes})


def test_a_node_of_a_network_is_a_graph(tmp_path: Path) -> None:
    write_network(tmp_path / "net", 60)
    task = structure_task(ego(above_median=True), tmp_path, 0)
    assert len(task.graphs) == 60
    assert {graph.num_features for graph in task.graphs} == {STRUCTURAL_FEATURES}
    assert task.info.level == "graph"
    assert task.info.target == "multiclass"
    assert sorted(task.sources) == ["net/edgelist.txt.gz", "net/nodelabel.txt.gz"]


def test_classes_are_above_the_median_of_all_nodes(tmp_path: Path) -> None:
    write_network(tmp_path / "net", 60)
    numbers = torch.from_numpy(read_structures(ego(), tmp_path).numbers)
    found = labelled_graphs(ego(above_median=True, most=40), tmp_path)
    assert len(found.graphs) == 40
    assert set(found.classes.tolist()) == {0, 1}
    everything = labelled_graphs(ego(above_median=True), tmp_path)
    expected = (numbers > numbers.double().quantile(0.5)).long()
    assert torch.equal(everything.classes, expected)


def test_loops_and_repetitions_are_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    for name, text in {"edgelist": "7 8\n8 7\n7 7\n", "nodelabel": "8 0\n7 1\n9 1\n"}.items():
        (folder / f"{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
    ((edges, nodes),) = read_structures(ego(), tmp_path).graphs
    assert (edges.tolist(), nodes) == ([[0, 1], [1, 0]], 3)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_collection_is_read_in_both_formats(tmp_path: Path, form: str) -> None:
    values = write_collection(tmp_path, form, 30)
    spec = CollectionSpec.model_validate(values)
    found = read_structures(spec, tmp_path)
    assert [nodes for _, nodes in found.graphs][:3] == [4, 5, 6]
    assert found.numbers.tolist() == [k % 2 for k in range(30)]
    task = structure_task(spec, tmp_path, 1)
    assert task.labels.tolist() == [k % 2 for k in range(30)]
    assert all(graph.validate() for graph in task.graphs)


def test_folds_are_stratified_and_the_seed_turns_them() -> None:
    classes = torch.arange(200) % 2
    splits = [fold_split(classes, seed) for seed in range(11)]
    tests = torch.cat([split.test for split in splits[:10]])
    assert torch.equal(tests.sort().values, torch.arange(200))
    for split, following in itertools.pairwise(splits):
        assert torch.equal(split.valid, following.test)
        assert classes[split.test].double().mean() == 0.5
        together = torch.cat([*vars(split).values()])
        assert torch.equal(together.sort().values, torch.arange(200))
    assert torch.equal(splits[0].test, splits[10].test)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    write_network(tmp_path / "net", 60)
    with pytest.raises(DataError, match="expected one for each of the labels"):
        structure_task(ego(), tmp_path, 0)
    with pytest.raises(DataError, match="at least 10"):
        structure_task(ego(above_median=True, most=12), tmp_path, 0)
    with pytest.raises(DataError, match="got no file at"):
        structure_task(ego(folder="none"), tmp_path, 0)
    (tmp_path / "net" / "edgelist.txt.gz").write_text("0 1 2\n")
    with pytest.raises(DataError, match="line 1: got '0 1 2'"):
        read_structures(ego(), tmp_path)
    (tmp_path / "net" / "edgelist.txt.gz").write_text("0 99\n")
    with pytest.raises(DataError, match="'99'"):
        read_structures(ego(), tmp_path)


def test_damaged_collections_are_refused(tmp_path: Path) -> None:
    values = write_collection(tmp_path, "text", 30)
    spec = CollectionSpec.model_validate(values)
    (tmp_path / spec.file).write_text("2\n1 0\n0 0\n")
    with pytest.raises(DataError, match="Xu et al"):
        read_structures(spec, tmp_path)
    values = write_collection(tmp_path, "json", 30)
    spec = CollectionSpec.model_validate(values)
    (tmp_path / spec.file).write_text(json.dumps({"unknown": [[0, 1]]}))
    with pytest.raises(DataError, match="unknown"):
        read_structures(spec, tmp_path)
