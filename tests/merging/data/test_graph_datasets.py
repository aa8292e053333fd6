import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from merging.config.base import CONFIG_FOLDER
from merging.data.graph_file import read_graphs, write_graphs
from merging.data.links import LinkTask
from merging.data.planetoid import CLASS_NAMES, PlanetoidName, PlanetoidSpec, load_planetoid
from merging.data.split import SUBSETS, Split
from merging.data.task_data import AnswerTask
from merging.families.graphs import GRAPHS, GraphConfig
from merging.family import Folders
from merging.run.config import load_config
from models.errors import ConfigError, DataError
from tests.merging.graph_files import make_config, ring_graphs, rule, write_rule

FOLDER = CONFIG_FOLDER / "graphs"
WIDTHS = {"cora": 1433, "citeseer": 3703}


def load_task(config: GraphConfig, task: str, data: Path, seed: int) -> Any:
    return GRAPHS.read(config, task, Folders(data, data), seed)


def planetoid_task(shared: Path, seed: int = 0, **spec: Any) -> AnswerTask | LinkTask:
    network = {"kind": "pyg_gcn", "in_dim": WIDTHS[spec["graph"]]}
    return load_task(
        make_config({"a": {"kind": "planetoid"} | spec}, network=network),
        "a",
        shared / "data",
        seed,
    )


@pytest.fixture
def copied(shared: Path, tmp_path: Path) -> Path:
    """A data folder whose Cora may be damaged."""
    folder = tmp_path / "planetoid/cora"
    shutil.copytree(shared / "data/planetoid/cora", folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_planetoid_is_what_pyg_reads(name: PlanetoidName, shared: Path) -> None:
    from torch_geometric.io import read_planetoid_data

    ours, theirs = (
        load_planetoid(name, shared / "data"),
        read_planetoid_data(str(shared / "data/planetoid" / name), name),
    )
    assert torch.equal(ours.x, theirs.x)
    known = ours.labels >= 0
    assert torch.equal(ours.labels[known], theirs.y[known])
    assert int((~known).sum()) == {"cora": 0, "citeseer": 15}[name]
    assert not ours.x[~known].any()
    assert {tuple(edge) for edge in ours.edge_index.T.tolist()} == {
        tuple(edge) for edge in theirs.edge_index.T.tolist() if edge[0] != edge[1]
    }
    for subset, mask in (
        ("train", theirs.train_mask),
        ("valid", theirs.val_mask),
        ("test", theirs.test_mask),
    ):
        assert torch.equal(getattr(ours.split, subset), mask.nonzero().flatten()), subset
    assert len(ours.class_names) == int(ours.labels.max()) + 1


class Command:
    """Pickled, it asks whoever reads it to run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_pickle_that_names_code_is_refused_and_not_run(copied: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = pickle.dumps(Command(f"touch {marker}"))
    (copied / "planetoid/cora/ind.cora.graph").write_bytes(evil)
    with pytest.raises(DataError, match=r"names posix\.system"):
        load_planetoid("cora", copied)
    assert not marker.exists()
    pickle.loads(evil)  # it would have: the test is not idle
    assert marker.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:999]),
    ],
)
def test_a_damaged_raw_file_is_named(copied: Path, damage: Any) -> None:
    path = copied / "planetoid/cora/ind.cora.allx"
    damage(path)
    with pytest.raises(DataError, match=r"ind\.cora\.allx"):
        load_planetoid("cora", copied)


def test_label_split_shares_the_graph_and_divides_the_nodes(shared: Path) -> None:
    whole = load_planetoid("cora", shared / "data")
    first = planetoid_task(shared, graph="cora", classes=[0, 1, 2], split="random")
    rest = planetoid_task(shared, graph="cora", classes=[6, 5, 4, 3], split="random")
    assert isinstance(first, AnswerTask)
    assert isinstance(rest, AnswerTask)
    assert first.info.labels == ("class_0", "class_1", "class_2")
    assert rest.info.labels == ("class_6", "class_5", "class_4", "class_3")
    for subset in SUBSETS:
        ours, others = getattr(first.split, subset), getattr(rest.split, subset)
        assert torch.equal(first.labels[ours], whole.labels[ours])
        assert torch.equal(6 - rest.labels[others], whole.labels[others])
    every = torch.cat([getattr(task.split, subset) for task in (first, rest) for subset in SUBSETS])
    assert torch.equal(every.sort().values, torch.arange(len(whole.x)))
    assert abs(len(first.split.train) + len(rest.split.train) - 0.6 * len(whole.x)) < 1
    other_seed = planetoid_task(shared, seed=1, graph="cora", classes=[0, 1, 2], split="random")
    assert isinstance(other_seed, AnswerTask)
    assert not torch.equal(other_seed.split.test, first.split.test)


def test_published_split_keeps_its_parts_in_a_label_split(shared: Path) -> None:
    whole, task = (
        load_planetoid("citeseer", shared / "data"),
        planetoid_task(shared, graph="citeseer", classes=[1, 4]),
    )
    assert isinstance(task, AnswerTask)
    assert len(task.split.train) == 40
    for subset in SUBSETS:
        rows, published = getattr(task.split, subset), getattr(whole.split, subset)
        assert torch.equal(
            rows, published[torch.isin(whole.labels[published], torch.tensor([1, 4]))]
        ), subset


def test_links_are_divided_and_hidden(shared: Path) -> None:
    whole, task = (
        load_planetoid("cora", shared / "data"),
        planetoid_task(shared, kind="link", graph="cora"),
    )
    assert isinstance(task, LinkTask)

    def codes(pairs: torch.Tensor) -> torch.Tensor:
        low, high = pairs.min(0).values, pairs.max(0).values
        return low * len(whole.x) + high

    links = {subset: codes(task.links[subset]) for subset in SUBSETS}
    assert torch.equal(
        torch.cat(list(links.values())).sort().values, codes(whole.edge_index).unique()
    )
    total = whole.edge_index.shape[1] // 2
    assert [len(links[subset]) for subset in SUBSETS] == [
        total - round(0.05 * total) - round(0.1 * total),
        round(0.05 * total),
        round(0.1 * total),
    ]
    assert torch.equal(codes(task.graphs[0].edge_index).unique(), links["train"].sort().values)
    for subset in SUBSETS:
        (step,) = task.steps(subset, 1)
        half = len(step.labels) // 2
        assert torch.equal(step.labels.flatten(), torch.cat([torch.ones(half), torch.zeros(half)]))
    others = codes(torch.cat([task.others["valid"], task.others["test"]], dim=1))
    assert not torch.isin(others, codes(whole.edge_index)).any()
    assert len(others.unique()) == len(others)


@pytest.mark.parametrize(
    ("level", "target"),
    [
        (level, target)
        for level in ("graph", "node")
        for target in ("multilabel", "multiclass", "regression")
    ],
)
def test_steps_show_every_row_once_where_it_belongs(
    tmp_path: Path, level: str, target: str
) -> None:
    task = load_task(
        make_config({"a": write_rule(tmp_path / "a.npz", level, target)}), "a", tmp_path, 0
    )
    assert isinstance(task, AnswerTask)
    truth = rule(ring_graphs(), level, target)
    torch.testing.assert_close(task.labels, truth, equal_nan=True)
    for subset in SUBSETS:
        seen = []
        for step in task.steps(subset, 7, shuffle=True):
            assert step.batch.num_graphs <= 7
            sums = step.batch.x.sum(1, keepdim=True)
            outputs = (
                sums
                if level == "node"
                else torch.zeros(step.batch.num_graphs, 1).index_add_(0, step.batch.batch, sums)
            )
            seen += [
                (round(float(value), 3), str(label.tolist()))
                for value, label in zip(step.select(outputs), step.labels, strict=True)
            ]
        x = (
            torch.cat([graph.x.sum(1) for graph in task.graphs])
            if level == "node"
            else torch.stack([graph.x.sum() for graph in task.graphs])
        )
        rows = getattr(task.split, subset)
        expected = [(round(float(x[row]), 3), str(task.labels[row].tolist())) for row in rows]
        assert [label for _, label in sorted(seen)] == [label for _, label in sorted(expected)]
        np.testing.assert_allclose(
            [value for value, _ in sorted(seen)],
            [value for value, _ in sorted(expected)],
            atol=2e-3,
        )


def test_calibration_of_some_nodes_is_those_trained_on(tmp_path: Path) -> None:
    task = load_task(
        make_config({"a": write_rule(tmp_path / "a.npz", "node", "multiclass")}), "a", tmp_path, 0
    )
    assert isinstance(task, AnswerTask)
    batches, nodes = replace(task, some_nodes=True).calibration(10**6, 16, 0)
    kept = torch.cat([batch.x[rows] for batch, rows in zip(batches, nodes, strict=True)])
    everything = torch.cat([graph.x for graph in task.graphs])
    assert torch.equal(kept, everything[task.split.train])
    few, all_nodes = task.calibration(5, 16, 0)
    assert sum(batch.num_graphs for batch in few) == 5
    assert all_nodes == ()


def test_label_split_shows_a_merger_its_own_nodes(shared: Path) -> None:
    whole, some = (
        planetoid_task(shared, graph="cora", classes=classes) for classes in (None, [0, 1])
    )
    assert isinstance(some, AnswerTask)
    (_, own), (_, every) = some.calibration(1, 1, 0), whole.calibration(1, 1, 0)
    assert torch.equal(own[0], some.split.train)
    assert every == ()


def test_file_comes_back(tmp_path: Path) -> None:
    graphs, split = (
        ring_graphs(count=9),
        Split(torch.tensor([0, 5]), torch.tensor([1]), torch.tensor([8, 2])),
    )
    write_graphs(tmp_path / "a.npz", graphs, rule(graphs, "graph", "regression"), split)
    stored = read_graphs(tmp_path / "a.npz")
    assert all(
        torch.equal(a.x, b.x) and torch.equal(a.edge_index, b.edge_index)
        for a, b in zip(stored.graphs, graphs, strict=True)
    )
    assert stored.split is not None
    assert all(
        torch.equal(a, b)
        for a, b in zip(vars(stored.split).values(), vars(split).values(), strict=True)
    )


def test_a_file_of_numbers_may_have_units(tmp_path: Path) -> None:
    described = write_rule(tmp_path / "a.npz", "graph", "regression")
    plain = make_config({"a": described}).tasks["a"]
    assert "units" not in plain.model_dump()  # finished pieces keep their fingerprints
    named = make_config({"a": described | {"units": ["K", ""]}})
    assert load_task(named, "a", tmp_path, 0).info.unit_of == {described["labels"][0]: "K"}
    with pytest.raises(ValidationError, match="units: got 1 for 2 labels"):
        make_config({"a": described | {"units": ["K"]}})


FINE = {
    "x": np.ones((3, 2), np.float32),
    "edge_index": np.array([[0, 1], [1, 0]]),
    "node_counts": np.array([2, 1]),
    "edge_counts": np.array([2, 0]),
    "labels": np.array([0, 1]),
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": None}, r"expected also \['x'\]"),
        ({"x": np.array([["a", "b"]] * 3)}, "x: got <U1"),
        ({"x": np.full((3, 2), np.nan)}, "graph 0: x: got a number that is not finite"),
        ({"x": np.ones((4, 2))}, "counts of 3 nodes"),
        ({"x": np.array([{}, {}, {}], dtype=object)}, "no .npz file of plain arrays"),
        ({"edge_index": np.array([[0.0, 1.0], [1.0, 0.0]])}, "edge_index: got float64"),
        ({"edge_index": np.array([[0, 2], [1, 0]])}, "graph 0: edge_index: got nodes from 0 to 2"),
        ({"edge_index": np.array([[0, 1], [0, 0]])}, "graph 0: edge_index: got a self-loop"),
        ({"node_counts": np.array([3, 0])}, "no graph without nodes"),
        ({"edge_counts": np.array([2])}, "as many of both"),
        ({"labels": np.array(["a", "b"])}, "labels: got <U1"),
        ({"train": np.array([0])}, r"got only \['train'\]"),
        (
            {"train": np.array([0]), "valid": np.array([0]), "test": np.array([1])},
            "none of them twice",
        ),
        ({"train": np.array([0]), "valid": np.array([1]), "test": np.array([2])}, "rows of 0 to 1"),
    ],
)
def test_unfit_files_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    np.savez(
        tmp_path / "a.npz",
        **{name: array for name, array in (FINE | changes).items() if array is not None},
    )
    with pytest.raises(DataError, match=said):
        read_graphs(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [None, b"", b"no archive", pickle.dumps([1])])
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz"):
        read_graphs(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("labels", "changes", "said"),
    [
        (
            torch.zeros(79, dtype=torch.int64),
            {},
            "79 rows of labels, expected one for each graph, 80",
        ),
        (torch.full((80,), 3), {}, "classes"),
        (torch.zeros(80, 1), {}, "classes"),
        (
            torch.full((80, 2), 0.5),
            {"target": "multilabel", "labels": ["a", "b"]},
            "other than 0 and 1",
        ),
        (
            torch.zeros(80, 3),
            {"target": "multilabel", "labels": ["a", "b"]},
            r"expected numbers \(M, 2\)",
        ),
        (torch.full((80, 1), torch.inf), {"target": "regression", "labels": ["a"]}, "infinite"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(
    tmp_path: Path, labels: torch.Tensor, changes: dict[str, Any], said: str
) -> None:
    task = write_rule(tmp_path / "a.npz", "graph", "multiclass") | changes
    write_graphs(tmp_path / "a.npz", ring_graphs(), labels)
    with pytest.raises(DataError, match=said):
        load_task(make_config({"a": task}), "a", tmp_path, 0)


def test_features_of_another_width_need_an_encoder(tmp_path: Path) -> None:
    tasks = {"a": write_rule(tmp_path / "a.npz", "graph", "multiclass", features=9)}
    with pytest.raises(DataError, match=r"got 9 features for each node, expected 4.*encoder: svd"):
        load_task(make_config(tasks), "a", tmp_path, 0)
    task = load_task(make_config(tasks, encoder="svd"), "a", tmp_path, 0)
    assert task.num_features == 9
    assert {graph.num_features for graph in task.graphs} == {4}
    seen = torch.cat([task.graphs[k].x for k in task.training_graphs().tolist()])
    # of the training graphs, not of all
    torch.testing.assert_close(seen.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert not torch.allclose(
        torch.cat([graph.x for graph in task.graphs]).mean(0), torch.zeros(4), atol=1e-5
    )


def test_bundled_configurations_are_read() -> None:
    files = sorted(FOLDER.glob("*.yaml"))
    assert {path.stem for path in files} >= {
        "cora_label_split",
        "cora_citeseer",
        "citeseer_label_split",
    }
    for path in files:
        config = load_config(Path(path.name))
        assert config.setting == path.stem
        by_graph: dict[str, list[int]] = {}
        for spec in config.tasks.values():
            if isinstance(spec, PlanetoidSpec):
                by_graph.setdefault(spec.graph, []).extend(
                    spec.classes or range(len(CLASS_NAMES[spec.graph]))
                )
        assert all(
            sorted(classes) == list(range(len(CLASS_NAMES[graph])))
            for graph, classes in by_graph.items()
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: {a/b: {kind: link, graph: cora}}", "tasks.a/b"),
        ("tasks: {a: {kind: planetoid, graph: cora, classes: [7, 1]}}", "classes"),
        ("tasks: {a: {kind: planetoid, graph: cora, classes: [1]}}", "classes"),
        ("tasks: {a: {kind: planetoid, graph: pubmed}}", "graph"),
        ("tasks: {a: {kind: table}}", "tasks.a"),
        ("merge: {method: magic}", "magic"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str, said: str) -> None:
    base = FOLDER / "cora_label_split.yaml"
    kept = "\n".join(
        line
        for line in base.read_text().splitlines()
        if not line.startswith(("#", "tasks", "  ", "merge"))
    )
    tasks = "" if text.startswith("tasks") else "tasks: {a: {kind: link, graph: cora}}\n"
    (tmp_path / "wrong.yaml").write_text(f"{kept}\n{tasks}{text}\n")
    with pytest.raises(ConfigError, match=said):
        load_config(tmp_path / "wrong.yaml")
