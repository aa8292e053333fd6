"""Joint alignment as stages of a run: its pool, its teachers, and the network for all tasks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from merging.data.pool import make_pool
from merging.families import molecules as molecules_family
from merging.run.models import shared_model
from merging.run.one_pass import (
    one_pass,
    one_pass_stream,
    one_pass_teacher,
    pool,
    start_network,
    teacher_outputs,
)
from merging.run.run import Run
from merging.run.scores import EVALUATIONS, evaluation, predict_subset
from merging.run.stages import merged_network, teacher, trained_model
from merging.training.teachers import NetworkTeacher
from models.artifact import load_artifact
from models.data.batch import GraphBatch
from models.data.smiles import featurize
from models.errors import CheckpointError, ConfigError, DataError
from models.experts.adapter import trace
from models.networks.hu2020 import BackboneConfig
from tests.conftest import pico_config, random_backbone
from tests.merging.conftest import molecules, stereo_corpus
from tests.merging.run.test_stages import released  # noqa: F401 - a fixture

QUICK: dict[str, Any] = {"rank": 4, "epochs": 2, "batch_size": 16}


def with_section(run: Run, **section: Any) -> Run:
    return run.with_changes(one_pass={**QUICK, **section})


def batch_of(run: Run, task: str = "nitrogen") -> GraphBatch:
    graphs = run.dataset(task).graphs
    return graphs.select(torch.arange(len(graphs)))


def test_a_run_without_the_section_says_so(pico_run: Run) -> None:
    run = replace(pico_run, config=pico_run.config.model_copy(update={"one_pass": None}))
    with pytest.raises(ConfigError, match=r"one_pass: got no such section in configuration 'pico'"):
        one_pass(run)


# --- the pool ---


def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the pool is made of, as it is handed over."""
    calls: list[dict[str, Any]] = []

    def recorded(sources: Any, left_out: Any, size: Any, seed: int, workers: int) -> Any:
        calls.append({"sources": sources, "left_out": list(left_out)})
        return make_pool(sources, left_out, size, seed, workers)

    monkeypatch.setattr(molecules_family, "make_pool", recorded)
    return calls


def subset_texts(run: Run, task: str, subset: str) -> set[str]:
    rows = getattr(run.dataset(task).split, subset)
    return {molecules()[row] for row in rows.tolist()}


def test_pool_has_training_molecules_and_a_file_but_no_test_molecule(
    pico_run: Run, tmp_path: Path
) -> None:
    """The file holds all molecules of the tasks, those that are tested on included."""
    other = ["CCCCCCCCCCCCCCCCCC", "N#N"]
    (tmp_path / "data/other.smi").write_text("\n".join(["smiles", *molecules(), *other]) + "\n")
    run = with_section(pico_run, pool={"files": ["other.smi"]})
    result = run.result(pool(run))
    tested = len(subset_texts(run, "nitrogen", "test"))
    assert result.record["drawn"] == {"nitrogen": 60, "other": 60, "other.smi": 82}
    assert result.record["left_out"] == tested == 10
    assert result.record["molecules"] == 80 - tested + 2
    test_graphs = [featurize(text).graph for text in subset_texts(run, "nitrogen", "test")]
    held = {signature(graph) for graph in unpacked(result.tensors)}
    assert not held & {signature(vars(graph)) for graph in test_graphs}
    training = [featurize(text).graph for text in subset_texts(run, "nitrogen", "train")]
    assert held >= {signature(vars(graph)) for graph in training}


def signature(graph: Any) -> tuple[Any, ...]:
    """A graph up to the order of its atoms, fine enough for the molecules of these tests: elements,
    and elements and types of bonds."""
    x, bonds = graph["x"][:, 0].tolist(), graph["edge_index"].tolist()
    types = graph["edge_attr"][:, 0].tolist()
    ends = sorted((x[a], x[b], kind) for a, b, kind in zip(*bonds, types, strict=True))
    return tuple(sorted(x)), tuple(ends)


def unpacked(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    nodes, edges = tensors["node_counts"].tolist(), tensors["edge_counts"].tolist()
    x = tensors["x"].split(nodes)
    index, attr = tensors["edge_index"].split(edges, dim=1), tensors["edge_attr"].split(edges)
    return [
        {"x": a, "edge_index": b, "edge_attr": c} for a, b, c in zip(x, index, attr, strict=True)
    ]


def test_sources_of_the_pool_can_be_chosen(
    pico_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = drawn_texts(monkeypatch)
    (tmp_path / "data/foreign.smi").write_text("\n".join(stereo_corpus()) + "\n")
    test = {text for task in pico_run.tasks for text in subset_texts(pico_run, task, "test")}
    valid = {text for task in pico_run.tasks for text in subset_texts(pico_run, task, "valid")}
    sections: list[dict[str, Any]] = [
        {"tasks": ["other"], "most_per_task": 20},
        {"most_by_task": {"other": 3}, "leave_out_validation": True},
        {"tasks": [], "files": ["foreign.smi"], "most_per_file": 30},
    ]
    for section in sections:
        run = with_section(pico_run, pool=section)
        run.result(pool(run))
    sizes = [{name: len(texts) for name, texts in call["sources"].items()} for call in calls]
    assert sizes == [{"other": 20}, {"nitrogen": 60, "other": 3}, {"foreign.smi": 30}]
    assert {*calls[0]["left_out"]} == {*calls[2]["left_out"]} == test
    assert {*calls[1]["left_out"]} == test | valid
    assert {*calls[0]["sources"]["other"]} <= subset_texts(pico_run, "other", "train")
    assert {*calls[2]["sources"]["foreign.smi"]} <= {*stereo_corpus()}


def test_a_missing_file_is_named_before_anything_is_made(pico_run: Run) -> None:
    run = with_section(pico_run, pool={"files": ["none.smi"]})
    with pytest.raises(DataError, match=r"one_pass\.pool\.files: got no file none\.smi"):
        one_pass(run)


def test_keys_follow_what_a_result_depends_on(pico_run: Run, tmp_path: Path) -> None:
    """A change of the training keeps the pool and the teachers' outputs; another pool changes
    all."""
    file = tmp_path / "data/file.smi"
    file.write_text("CCO\n")
    base = with_section(pico_run, pool={"files": ["file.smi"]})
    longer = base.with_changes(one_pass={"epochs": 3})
    smaller = base.with_changes(one_pass={"pool": {"files": ["file.smi"], "size": 9}})
    ensemble = base.with_changes(one_pass={"teachers": {"seeds": [0, 1]}})
    makers = pool, lambda run: teacher_outputs(run, "other"), one_pass
    keys = {
        name: [make(run).key for make in makers]
        for name, run in {
            "base": base,
            "longer": longer,
            "smaller": smaller,
            "ensemble": ensemble,
        }.items()
    }
    same = {
        name: [a == b for a, b in zip(keys["base"], other, strict=True)]
        for name, other in keys.items()
    }
    assert same == {
        "base": [True, True, True],
        "longer": [True, True, False],
        "smaller": [False, False, False],
        "ensemble": [True, False, False],
    }
    file.write_text("CCN\n")
    assert not any(a == make(base).key for a, make in zip(keys["base"], makers, strict=True))


# --- teachers and start ---


def test_finetuned_models_teach(pico_run: Run) -> None:
    run = with_section(pico_run)
    model = trained_model(run, teacher(run, "other"))
    data = run.dataset("other")
    modules = run.family.load_model(run.config.shape, model.network, model.heads["other"], data)
    expected = run.family.outputs(*modules, batch_of(run), data.info, training=False)
    answering = one_pass_teacher(run, "other")
    torch.testing.assert_close(answering.outputs(batch_of(run)), expected)
    assert answering.labels == ("has_o", "has_halogen")


def test_several_seeds_teach_by_their_mean(pico_run: Run) -> None:
    run = with_section(pico_run, teachers={"seeds": [0, 3]})
    alone = [
        one_pass_teacher(replace(with_section(pico_run), seed=seed), "other").outputs(batch_of(run))
        for seed in (0, 3)
    ]
    assert not torch.allclose(*alone, atol=1e-3)
    mean = one_pass_teacher(run, "other").outputs(batch_of(run))
    torch.testing.assert_close(mean, (alone[0] + alone[1]) / 2)
    result = run.result(teacher_outputs(run, "other"))
    assert result.tensors["outputs"].shape == (run.result(pool(run)).record["molecules"], 2)


def test_activations_of_several_seeds_are_refused_before_training(pico_run: Run) -> None:
    for term in ("layers", "embeddings"):
        run = with_section(pico_run, teachers={"seeds": [0, 3]}, losses={term: 1.0})
        with pytest.raises(ConfigError, match=rf"losses\.{term}: got a teacher of nitrogen that"):
            run.result(one_pass(run))


def test_own_streams_of_an_artifact_teach(released: Path, pico_run: Run) -> None:  # noqa: F811
    folder = released / "artifact"
    run = with_section(pico_run, teachers={"artifact": str(folder)})
    served = load_artifact(folder).model(batch_of(run), ["other"], "own").logits["other"]
    torch.testing.assert_close(one_pass_teacher(run, "other").outputs(batch_of(run)), served)
    start = start_network(run).state_dict()
    for key, value in merged_network(pico_run).state_dict().items():
        assert torch.equal(start[key], value), key
    result = run.result(one_pass(run))
    assert result.record["settings"]["teachers"]["artifact"] == str(folder)


def test_an_artifact_of_other_labels_is_refused(released: Path, pico_run: Run) -> None:  # noqa: F811
    spec = pico_run.config.datasets["other"].model_dump() | {"label_columns": ["has_o"]}
    datasets = {**pico_run.config.model_dump()["datasets"], "other": spec}
    run = with_section(pico_run, teachers={"artifact": str(released / "artifact")})
    run = replace(run.with_changes(datasets=datasets), _datasets={})
    with pytest.raises(ConfigError, match=r"\['has_o', 'has_halogen'\] of other, .*\['has_o'\]"):
        one_pass_teacher(run, "other")


def test_training_starts_where_it_is_told(pico_run: Run, tmp_path: Path) -> None:
    state = random_backbone(pico_config(), seed=77).state_dict()
    save_file(state, tmp_path / "mine.safetensors")
    expected = {
        "merged": merged_network(pico_run).state_dict(),
        "pretrained": random_backbone(pico_config()).state_dict(),
        str(tmp_path / "mine.safetensors"): state,
    }
    keys = set()
    for start, values in expected.items():
        run = with_section(pico_run, start=start)
        found = start_network(run).state_dict()
        assert all(torch.equal(found[key], value) for key, value in values.items()), start
        keys.add(one_pass(run).key)
    assert len(keys) == 3
    deep = BackboneConfig(kind="gcn", num_layers=4, hidden_dim=16)
    save_file(random_backbone(deep).state_dict(), tmp_path / "deep.safetensors")
    with pytest.raises(CheckpointError, match=r"deep\.safetensors does not fit"):
        start_network(with_section(pico_run, start=str(tmp_path / "deep.safetensors")))
    with pytest.raises(CheckpointError, match=r"got no file at nowhere\.pth"):
        one_pass(with_section(pico_run, start="nowhere.pth"))


def test_a_merger_of_one_network_per_task_is_no_start(pico_run: Run) -> None:
    run = with_section(pico_run).with_changes(merge={"method": "emr"})
    with pytest.raises(ConfigError, match="'emr', which gives each task its own backbone"):
        run.result(one_pass(run))


# --- the result ---


def test_result_holds_the_network_and_is_evaluated(pico_run: Run) -> None:
    run = with_section(pico_run)
    result = run.result(one_pass(run))
    shapes = {key: tuple(value.shape) for key, value in result.by_task("tasks/")["other"].items()}
    assert shapes == {
        "graph.down": (16, 4),
        "graph.up": (4, 16),
        "head.weight": (2, 16),
        "head.bias": (2,),
    }
    assert result.under("backbone/").keys() == merged_network(run).state_dict().keys()
    before = merged_network(run).state_dict()["batch_norms.0.running_mean"]
    assert not torch.allclose(result.tensors["backbone/batch_norms.0.running_mean"], before)
    record = result.record
    assert record["pool"]["molecules"] == record["trained_molecules"] + record["watched_molecules"]
    assert {task: [*by_label] for task, by_label in record["explained"].items()} == {
        "nitrogen": ["has_n"],
        "other": ["has_o", "has_halogen"],
    }
    stream = one_pass_stream(run)
    data = run.dataset("other")
    forward = lambda batch: stream(batch).outputs["other"]  # noqa: E731
    outputs, labels = run.family.predict(forward, data.steps("test", 3), run.device)
    expected = run.family.metrics(outputs, labels, data.info)["roc_auc"]
    scores = run.result(evaluation("one_pass", run, "other")).record["stored"]
    assert scores["test"]["roc_auc"] == pytest.approx(expected, abs=1e-5)


def test_the_router_may_mix_the_graph_adapters(pico_run: Run) -> None:
    """At a temperature near 0 every task has its own adapter, and at a high one the mean of all."""
    run = with_section(pico_run, rank=16, epochs=3, learning_rate=0.01)

    def outputs(temperature: float) -> Tensor:
        router = {"graph_temperature": temperature}
        mixed = run.with_changes(one_pass=run.config.one_pass.model_dump(), router=router)
        forward = EVALUATIONS["one_pass_routed"].forward(mixed, "other", "stored")
        return predict_subset(mixed, forward, "other", "test")[0]

    stream = one_pass_stream(run)
    batch = batch_of(run, "other")
    own = predict_subset(run, lambda b: stream(b).outputs["other"], "other", "test")[0]
    torch.testing.assert_close(outputs(1e-9), own, rtol=1e-4, atol=1e-5)
    readout = trace(stream.backbone, batch).graph_embedding
    mean = torch.stack([adapter(readout) for adapter in stream.adapters]).mean(0)
    expected = stream.heads[stream.tasks.index("other")](readout - mean)
    rows = run.dataset("other").split.test
    torch.testing.assert_close(outputs(1e9), expected[rows], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs(1e9), own, rtol=1e-3)


def test_references_are_the_teacher_and_the_start(pico_run: Run) -> None:
    """The fine-tuned models are the teachers, and the merged backbone without adapters the
    start."""
    run = with_section(pico_run)
    for name, same in (("one_pass_teachers", "finetuned"), ("one_pass_start", "merged")):
        found, expected = (
            run.result(evaluation(which, run, "other")).record["stored"] for which in (name, same)
        )
        for subset in ("valid", "test"):
            assert found[subset] == pytest.approx(expected[subset], abs=1e-4)


def test_tasks_keep_the_order_of_the_configuration(pico_run: Run) -> None:
    """Tensors of a file are sorted by name, which is another order here."""
    config = pico_run.config.model_copy(update={"tasks": ("other", "nitrogen")})
    run = with_section(replace(pico_run, config=config))
    assert one_pass_stream(run).tasks == tuple(shared_model(run)[1]) == ("other", "nitrogen")


def test_teachers_answer_as_their_networks_do(pico_run: Run, released: Path) -> None:  # noqa: F811
    """Outputs are computed by the kernels of the service, traces by the network."""
    of_run = with_section(pico_run)
    of_artifact = with_section(pico_run, teachers={"artifact": str(released / "artifact")})
    for run in (of_run, of_artifact):
        answering, batch = one_pass_teacher(run, "other"), batch_of(run, "other")
        assert isinstance(answering, NetworkTeacher)
        assert answering.answer is not None
        expected = answering.head(answering.trace(batch).graph_embedding)
        torch.testing.assert_close(answering.outputs(batch), expected, atol=1e-4, rtol=1e-4)


def test_a_regression_and_classes_are_aligned_too(pico_run: Run, tmp_path: Path) -> None:
    ones = [str(1000 + 10 * len(text)) for text in molecules()]
    words = [("small", "middle", "large")[len(text) % 3] for text in molecules()]
    for name, column, cells in (("size", "value", ones), ("word", "kind", words)):
        rows = zip(molecules(), cells, strict=True)
        lines = [f"smiles,{column}", *(",".join(row) for row in rows)]
        (tmp_path / f"data/{name}.csv").write_text("\n".join(lines) + "\n")
    values = pico_run.config.model_dump()
    values["datasets"] = {
        "size": {"file": "size.csv", "target": "regression", "label_columns": ["value"]},
        "word": {"file": "word.csv", "target": "multiclass", "label_columns": ["kind"]},
    }
    values |= {"tasks": ["size", "word"], "alignment_by_task": {}, "compare": {}}
    values["one_pass"] = {**QUICK, "epochs": 30, "learning_rate": 0.01}
    config = type(pico_run.config).model_validate(values)
    run = replace(pico_run, config=config, _datasets={})
    record = run.result(one_pass(run)).record
    assert record["watched"]["size"][-1] < record["watched"]["size"][0]
    answers = one_pass_stream(run)(batch_of(run, "size")).outputs
    assert answers["word"].shape == (80, 3)
    expected = one_pass_teacher(run, "size").outputs(batch_of(run, "size"))
    assert float((answers["size"] - expected).abs().mean()) < 2 * float(expected.std())
    assert float(answers["size"].mean()) == pytest.approx(float(expected.mean()), rel=0.05)
