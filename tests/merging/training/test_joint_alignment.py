"""Joint alignment: the loss by hand, what a student must learn, and that a stopped training is the
same training."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from merging.config.joint_alignment import JointAlignmentConfig, JointLossConfig
from merging.targets.probe import fit_probe
from merging.training.joint_alignment import (
    JointAlignmentResult,
    SharedStream,
    Targets,
    align_jointly,
    check_activations,
    linear,
    output_loss,
    shared_stream,
    start_heads,
)
from merging.training.teachers import EnsembleTeacher, NetworkTeacher, Teacher
from models.data.batch import GraphBatch
from models.data.molecule import PackedGraphs, pack
from models.data.smiles import featurize
from models.errors import ConfigError
from models.experts.adapter import trace
from models.networks.base import LayeredNetwork, SiteHook
from models.networks.hu2020 import BackboneConfig
from models.task import TaskInfo
from tests.conftest import pico_config, random_backbone
from tests.merging.conftest import stereo_corpus
from tests.merging.training.test_teachers import network_teacher

CPU = torch.device("cpu")
INFO = {"alpha": TaskInfo(labels=("a",)), "beta": TaskInfo(labels=("b", "c"))}


@cache
def pool() -> PackedGraphs:
    """320 molecules, in random order."""
    order = torch.randperm(320, generator=torch.Generator().manual_seed(0))
    smiles = stereo_corpus()
    return pack([featurize(smiles[k]).graph for k in order.tolist()])


def everything(graphs: PackedGraphs) -> GraphBatch:
    return graphs.select(torch.arange(len(graphs)))


class LinearNetwork(LayeredNetwork):
    """One linear map of an atom's type, without BatchNorm: what its mean and a linear head make of
    a molecule is a linear function of the counts of elements."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.config = BackboneConfig(kind="gcn", num_layers=1, hidden_dim=8)
        self.gnns = nn.ModuleList([nn.Linear(20, 8)])
        self.batch_norms = nn.ModuleList()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)

    def forward(
        self, batch: GraphBatch, correct: SiteHook | None = None, normalise: SiteHook | None = None
    ) -> Tensor:
        h: Tensor = self.gnns[0](nn.functional.one_hot(batch.x[:, 0], 20).float())
        return correct(0, h) if correct else h


def linear_teacher(seed: int, labels: tuple[str, ...]) -> NetworkTeacher:
    network, generator = LinearNetwork(seed), torch.Generator().manual_seed(seed)
    head = linear(torch.randn(len(labels), 8, generator=generator), torch.zeros(len(labels)))
    return NetworkTeacher(labels, head, network.config, lambda batch: trace(network, batch))


def targets_of(
    teachers: Mapping[str, Teacher], infos: Mapping[str, TaskInfo] = INFO
) -> dict[str, Targets]:
    batch = everything(pool())
    return {
        task: Targets.of(teacher.outputs(batch), infos[task]) for task, teacher in teachers.items()
    }


def student(seed: int = 9, rank: int = 4) -> SharedStream:
    torch.manual_seed(seed)
    heads = {task: nn.Linear(16, len(info.labels)) for task, info in INFO.items()}
    return SharedStream(random_backbone(pico_config(), seed=seed), heads, rank)


def teachers() -> dict[str, NetworkTeacher]:
    return {
        task: network_teacher(seed, info.labels) for seed, (task, info) in enumerate(INFO.items())
    }


def settings(epochs: int = 2, **values: Any) -> JointAlignmentConfig:
    defaults = {"rank": 4, "epochs": epochs, "batch_size": 32, "learning_rate": 0.01}
    return JointAlignmentConfig.model_validate({**defaults, **values})


def aligned(
    checkpoint: Path,
    config: JointAlignmentConfig,
    stream: SharedStream | None = None,
    given: Mapping[str, Targets] | None = None,
) -> JointAlignmentResult:
    targets = targets_of(teachers()) if given is None else given
    place = config, 0, checkpoint, CPU
    return align_jointly(stream or student(), pool(), targets, teachers(), *place)


# --- the start ---


def test_heads_start_as_the_teachers_or_fit_their_outputs() -> None:
    """A network of the student's shape lends its head; what any other teacher says is fitted on the
    start's embeddings, in the units of the labels."""
    given: dict[str, Teacher] = {
        "alpha": network_teacher(1, INFO["alpha"].labels),
        "beta": EnsembleTeacher([network_teacher(k, INFO["beta"].labels) for k in (2, 3)]),
    }
    network, graphs = random_backbone(pico_config(), seed=7), pool()
    targets = targets_of(given)
    heads = start_heads(network, graphs, given, targets, CPU)
    assert isinstance(given["alpha"], NetworkTeacher)
    assert torch.equal(heads["alpha"].weight, given["alpha"].head.weight)
    batch = everything(graphs)
    with torch.no_grad():
        embeddings = trace(network.eval(), batch).graph_embedding
        said = heads["beta"](embeddings)
    fitted = fit_probe(embeddings, targets["beta"].outputs, "regression", None)
    torch.testing.assert_close(
        heads["beta"].weight.detach(), fitted["weight"], atol=1e-3, rtol=1e-3
    )
    errors = targets["beta"].error(said, torch.arange(len(graphs)))
    assert bool((errors < 1).all())


def test_a_fitted_head_answers_in_the_units_of_a_regression() -> None:
    info = {"size": TaskInfo(labels=("atoms", "twice"), target="regression")}

    class Sizes:
        labels = info["size"].labels

        def outputs(self, batch: GraphBatch) -> Tensor:
            atoms = batch.batch.bincount(minlength=batch.num_graphs).float()
            return torch.stack([1000 + atoms, 2 * atoms], 1)

    given: dict[str, Teacher] = {"size": Sizes()}
    network = random_backbone(pico_config(), seed=7)
    heads = start_heads(network, pool(), given, targets_of(given, info), CPU)
    with torch.no_grad():
        said = heads["size"](trace(network.eval(), everything(pool())).graph_embedding)
    assert float(said[:, 0].mean()) == pytest.approx(1000 + float(said[:, 1].mean()) / 2, rel=1e-3)


# --- the loss ---


def test_loss_by_hand_on_three_molecules() -> None:
    """Variances of the teachers' outputs: alpha (0, 3, 6): 6; beta (1, 1, 1): none, so 1, and
    (0, 0, 3): 2."""
    targets = {
        "alpha": Targets.of(torch.tensor([[0.0], [3.0], [6.0]]), INFO["alpha"]),
        "beta": Targets.of(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 3.0]]), INFO["beta"]),
    }
    outputs = {
        "alpha": torch.tensor([[1.0], [3.0], [3.0]]),
        "beta": torch.tensor([[1.0, 2.0], [2.0, 0.0], [1.0, 1.0]]),
    }
    rows = torch.arange(3)
    alpha = (1 + 0 + 9) / 3 / 6
    beta = ((0 + 1 + 0) / 3 / 1 + (4 + 0 + 4) / 3 / 2) / 2
    loss = output_loss(outputs, targets, rows, {"alpha": 1, "beta": 1})
    assert float(loss) == pytest.approx((alpha + beta) / 2)
    weighted = output_loss(outputs, targets, rows, {"alpha": 1, "beta": 3})
    assert float(weighted) == pytest.approx((alpha + 3 * beta) / 4)
    swapped = {task: values[[2, 0]] for task, values in outputs.items()}
    two = output_loss(swapped, targets, torch.tensor([2, 0]), {"alpha": 1, "beta": 0})
    assert float(two) == pytest.approx((9 + 1) / 2 / 6)


def test_logits_below_the_least_count_as_it_and_values_of_a_regression_do_not() -> None:
    outputs = torch.tensor([[-30.0], [-5.0], [1.0]])
    clipped = Targets.of(outputs, INFO["alpha"], least_logit=-8.0)
    assert clipped.outputs.tolist() == [[-8.0], [-5.0], [1.0]]
    assert float(clipped.variances) == pytest.approx(14.0)
    values = Targets.of(outputs, TaskInfo(labels=("a",), target="regression"), least_logit=-8.0)
    back = values.outputs * values.scale.deviation + values.scale.mean
    torch.testing.assert_close(back, outputs)
    torch.testing.assert_close(values.variances, torch.ones(1))


# --- the student ---


def test_a_pass_answers_every_task_by_its_adapter_and_head() -> None:
    stream, batch = student().eval(), everything(pool())
    with torch.no_grad():
        for adapter in stream.adapters:
            adapter.up.uniform_(-1, 1)
    found = stream(batch)
    traced = trace(stream.backbone, batch)
    g = traced.graph_embedding
    for task, adapter, head in zip(INFO, stream.adapters, stream.heads, strict=True):
        embedding = g - (g @ adapter.down).relu() @ adapter.up
        torch.testing.assert_close(found.embeddings[task], embedding)
        torch.testing.assert_close(found.outputs[task], head(embedding))
    for ours, theirs in zip(found.convolutions, traced.convolutions, strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(found.readout, g)


def test_tensors_make_the_same_stream(tmp_path: Path) -> None:
    stream, batch = aligned(tmp_path / "state.pt", settings(1)).stream, everything(pool())
    tensors = stream.tensors()
    assert {key for key in tensors if not key.startswith("backbone/")} == {
        f"tasks/{task}/{name}"
        for task in INFO
        for name in ("graph.down", "graph.up", "head.weight", "head.bias")
    }
    backbone = random_backbone(pico_config(), seed=5)
    prefix = "backbone/"
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    backbone.load_state_dict(state)
    tasks = {
        task: {
            key.removeprefix(f"tasks/{task}/"): value
            for key, value in tensors.items()
            if key.startswith(f"tasks/{task}/")
        }
        for task in INFO
    }
    again = shared_stream(backbone, tasks)
    for task in INFO:
        assert torch.equal(again(batch).outputs[task], stream(batch).outputs[task])


# --- the training ---


def test_a_student_that_can_be_its_teachers_becomes_them(tmp_path: Path) -> None:
    """Teachers of different networks, all linear: one linear network can answer for both."""
    own = {"alpha": linear_teacher(1, ("a",)), "beta": linear_teacher(2, ("b", "c"))}
    torch.manual_seed(0)
    heads = {task: nn.Linear(8, len(info.labels)) for task, info in INFO.items()}
    stream = SharedStream(LinearNetwork(3), heads, 4)
    config = settings(100, learning_rate=0.03)
    place = config, 0, tmp_path / "state.pt", CPU
    result = align_jointly(stream, pool(), targets_of(own), own, *place)
    shares = [
        share for by_label in result.record["explained"].values() for share in by_label.values()
    ]
    assert min(shares) > 0.995
    for task, teacher in own.items():
        expected = teacher.outputs(everything(pool()))
        error = (result.stream(everything(pool())).outputs[task] - expected).std()
        assert float(error) < 0.07 * float(expected.std())


def test_training_lowers_the_loss_of_every_task_on_watched_molecules(tmp_path: Path) -> None:
    record = aligned(tmp_path / "state.pt", settings(8)).record
    assert len(record["loss"]) == 8
    assert record["loss"][-1] < 0.5 * record["loss"][0]
    for task, losses in record["watched"].items():
        assert len(losses) == 8
        assert losses[-1] < 0.7 * losses[0], task
        shares = record["explained"][task].values()
        assert sum(shares) / len(shares) == pytest.approx(1 - losses[-1], abs=1e-3)
    assert (record["watched_molecules"], record["trained_molecules"]) == (32, 288)


def test_a_student_may_add_to_the_loss_and_follow_a_step(tmp_path: Path) -> None:
    class Recorded(SharedStream):
        def own_loss(self, step: int) -> Tensor:
            calls.append(("loss", step))
            return 7 + 0 * self.heads[0].get_parameter("bias").sum()

        def after_step(self, step: int) -> None:
            calls.append(("after", step))

    calls: list[tuple[str, int]] = []
    plain = student()
    heads = {
        task: cast(nn.Linear, head) for task, head in zip(plain.tasks, plain.heads, strict=True)
    }
    recorded = Recorded(plain.backbone, heads, 4)
    recorded.adapters = plain.adapters
    found = aligned(tmp_path / "own.pt", settings(2), recorded).record["loss"]
    steps = 2 * (288 // 32)
    assert calls == [(kind, step + 1) for step in range(steps) for kind in ("loss", "after")]
    expected = aligned(tmp_path / "plain.pt", settings(2)).record["loss"]
    assert found == pytest.approx([loss + 7 for loss in expected], rel=1e-5)


@pytest.mark.parametrize("losses", [{}, {"embeddings": 1.0, "layers": 0.5}])
def test_stopped_and_resumed_is_the_same_run(tmp_path: Path, losses: dict[str, float]) -> None:
    config = settings(3, losses=losses)
    whole = aligned(tmp_path / "whole.pt", config)
    stopped = train_and_stop(tmp_path / "resumed.pt", config, 1)
    assert stopped == 1
    resumed = aligned(tmp_path / "resumed.pt", config)
    for name in ("loss", "watched", "explained"):
        assert resumed.record[name] == whole.record[name]
    for key, value in whole.stream.tensors().items():
        assert torch.equal(resumed.stream.tensors()[key], value), key


def train_and_stop(checkpoint: Path, config: JointAlignmentConfig, epochs: int) -> int:
    """Train and stop with an error in the epoch after so many; return the number that was saved."""

    class StopError(Exception):
        pass

    class Stopping(Targets):
        calls = 0

        def error(self, outputs: Tensor, rows: Tensor) -> Tensor:
            type(self).calls += 1
            # Nine batches and the watched molecules in every epoch.
            if type(self).calls > 10 * epochs + 4:
                raise StopError
            return super().error(outputs, rows)

    given = targets_of(teachers())
    first = given["alpha"]
    given["alpha"] = Stopping(first.labels, first.outputs, first.scale)
    with pytest.raises(StopError):
        aligned(checkpoint, config, given=given)
    saved = torch.load(checkpoint, weights_only=True)
    return len(saved["history"])


def test_watched_molecules_are_not_trained_on(tmp_path: Path) -> None:
    plain, other = targets_of(teachers()), targets_of(teachers())
    for task, targets in other.items():
        outputs = targets.outputs.clone()
        outputs[:32] = outputs[:32].flip(0)  # the same variance
        other[task] = replace(targets, outputs=outputs)
    results = [
        aligned(tmp_path / f"{k}.pt", settings(2), given=given)
        for k, given in enumerate((plain, other))
    ]
    for key, value in results[0].stream.tensors().items():
        torch.testing.assert_close(results[1].stream.tensors()[key], value)
    assert results[0].record["watched"] != results[1].record["watched"]


def test_a_task_without_weight_is_not_taught(tmp_path: Path) -> None:
    before = student().tensors()
    after = aligned(tmp_path / "state.pt", settings(1, task_weights={"beta": 0})).stream.tensors()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert not any(key.startswith("tasks/beta/") for key in moved)
    assert {"tasks/alpha/graph.up", "tasks/alpha/head.weight", "tasks/alpha/head.bias"} <= moved
    assert {"backbone/gnns.0.linear.weight", "backbone/batch_norms.0.running_mean"} <= moved
    with pytest.raises(ConfigError, match="task_weights: got 0 for every task"):
        aligned(tmp_path / "none.pt", settings(1, task_weights={"alpha": 0, "beta": 0}))


def test_terms_on_activations_bring_them_closer(tmp_path: Path) -> None:
    """Without its output term the student still comes closer to what the teachers hold inside."""
    batch = everything(pool())
    own = teachers()

    @torch.no_grad()
    def distances(stream: SharedStream) -> tuple[float, float]:
        found, pairs = stream.eval()(batch), []
        for task, teacher in own.items():
            held = teacher.trace(batch)
            apart = (found.embeddings[task] - held.graph_embedding).abs().mean()
            layers = zip(found.convolutions, held.convolutions, strict=True)
            angles = [1 - torch.cosine_similarity(a, b).mean() for a, b in layers]
            pairs.append((float(apart), float(sum(angles))))
        return sum(a for a, _ in pairs), sum(b for _, b in pairs)

    before = distances(student())
    only_embeddings = {"logits": 0, "embeddings": 1}
    first = aligned(tmp_path / "embeddings.pt", settings(4, losses=only_embeddings)).stream
    assert distances(first)[0] < 0.8 * before[0]
    heads = [(f"tasks/{task}/head.weight") for task in INFO]
    assert all(torch.equal(first.tensors()[key], student().tensors()[key]) for key in heads)
    only_layers = {"logits": 0, "layers": 1}
    second = aligned(tmp_path / "layers.pt", settings(4, losses=only_layers)).stream
    assert distances(second)[1] < 0.8 * before[1]


def test_a_regression_answers_in_its_units(tmp_path: Path) -> None:
    """Targets and head in other units, the same training: what is learnt does not depend on
    them."""
    info = {"alpha": TaskInfo(labels=("a",), target="regression"), "beta": INFO["beta"]}
    outputs, batch = teachers()["alpha"].outputs(everything(pool())), everything(pool())
    answers = []
    for k, (factor, offset) in enumerate(((1.0, 0.0), (1000.0, 300.0))):
        given = targets_of(teachers())
        given["alpha"] = Targets.of(outputs * factor + offset, info["alpha"])
        stream = student()
        with torch.no_grad():
            head = stream.heads[0]
            head.weight.mul_(factor)
            head.bias.mul_(factor).add_(offset)
        result = aligned(tmp_path / f"{k}.pt", settings(3), stream, given)
        answers.append((result.stream(batch).outputs["alpha"] - offset) / factor)
    assert float(answers[0].std()) > 0.1
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-2, atol=1e-2)


def test_an_answer_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    stream = aligned(tmp_path / "state.pt", settings(1)).stream
    whole = stream(everything(pool())).outputs["beta"][:3]
    few = stream(pool().select(torch.arange(3))).outputs["beta"]
    torch.testing.assert_close(few, whole, rtol=1e-4, atol=1e-5)


# --- teachers without activations ---


@pytest.mark.parametrize("term", ["embeddings", "layers"])
def test_activations_of_an_ensemble_are_a_clear_error(term: str) -> None:
    losses = JointLossConfig.model_validate({term: 1.0})
    own = {"alpha": network_teacher(0, ("a",)), "beta": EnsembleTeacher([network_teacher(1)])}
    with pytest.raises(ConfigError, match=rf"losses\.{term}: got a teacher of beta that only"):
        check_activations(own, losses, pico_config())
    check_activations(own, JointLossConfig(), pico_config())


def test_activations_of_another_shape_are_an_error() -> None:
    own = {"alpha": network_teacher(0, ("a",))}
    wide = BackboneConfig(kind="gcn", num_layers=3, hidden_dim=32)
    deep = BackboneConfig(kind="gin", num_layers=4, hidden_dim=16)
    with pytest.raises(ConfigError, match=r"embeddings: got .*\(3, 16\), expected"):
        check_activations(own, JointLossConfig(embeddings=1), wide)
    with pytest.raises(ConfigError, match=r"layers: got a teacher of alpha .*\(3, 16\).*\(4, 16\)"):
        check_activations(own, JointLossConfig(embeddings=1, layers=1), deep)
    check_activations(own, JointLossConfig(embeddings=1), deep)
