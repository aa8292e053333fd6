"""One contract for every family of models: what it reads, it can put into a batch, answer and pay
for; what it cannot read, it refuses with a sentence. A new family is a row of `CASES` here too."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from models.artifact import ArtifactComponents, load_artifact, load_components, save_artifact
from models.compiled.model import CompiledModel
from models.data.schema import AtomsInput, BondInput, FeatureInput, InputSchema, MoleculeInput
from models.errors import ArtifactError, InvalidInputError, MoleculeError
from models.experts.router import RouterConfig
from models.experts.unified import Routing
from models.families.base import ModelFamily, TaskOutput
from models.families.inputs import Graph, SizeLimits, tensors_of
from models.families.table import FAMILIES, ROWS, AnyInput, AnyShape
from models.manifest import Manifest, make_manifest
from models.networks.base import NetworkShape
from models.networks.chgnet import ChgnetConfig
from models.networks.dmpnn import DmpnnConfig, DmpnnHead
from models.networks.hu2020 import BackboneConfig
from models.networks.pyg import GraphNetworkConfig
from models.networks.schnet import ForceFieldConfig
from models.screening import ScreenedModel
from models.task import TaskInfo

LIMITS = SizeLimits(max_atoms=6)
CLOSE = 1e-5
ENDS = [[0, 1, 1, 2], [1, 0, 2, 1]]
WATER = [[0, 0, 0.117], [0, 0.757, -0.467], [0, -0.757, -0.467]]


@dataclass(frozen=True)
class Case:
    """A kind of network, two tasks of different targets or levels, and inputs that both take.

    Attributes:
        shape, rank, schema, infos: of an artifact.
        inputs: by their fields; the first has three nodes, and all are of other sizes.
        cost: of the first input.
        refused: fields that differ from the first input's, and what the refusal says.
    """

    shape: NetworkShape
    rank: int
    schema: InputSchema
    infos: dict[str, TaskInfo]
    inputs: tuple[dict[str, Any], ...]
    cost: int
    refused: tuple[tuple[dict[str, Any], str], ...]

    @property
    def family(self) -> ModelFamily:
        return FAMILIES[self.shape.kind]

    @property
    def graphs(self) -> list[Graph]:
        return [self.read(fields) for fields in self.inputs]

    @property
    def manifest(self) -> Manifest:
        return make_manifest(
            "pico", "1", self.shape, self.rank, RouterConfig(), self.infos, input=self.schema
        )

    def read(self, fields: Mapping[str, Any]) -> Graph:
        self.family.check(fields, LIMITS)
        return self.family.read(fields, self.shape, self.schema, LIMITS)

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return randomised(self.family.network(self.shape))

    def experts(self) -> dict[str, nn.Module]:
        torch.manual_seed(1)
        made = {}
        for task, info in self.infos.items():
            expert = self.family.expert(self.shape, self.rank, info, self.schema, task)
            made[task] = randomised(expert)
            if isinstance(self.schema, AtomsInput):
                made[task].elements.zero_()[list(self.schema.elements[task])] = True
        return made

    def answers(
        self, graphs: list[Graph], tasks: Sequence[str] = (), routing: Routing = "own"
    ) -> dict[str, TaskOutput]:
        model = self.family.model(self.network(), self.experts(), RouterConfig())
        batch = self.family.collate(graphs)
        return self.family.answer(model, batch, tasks or tuple(self.infos), routing)


def randomised(module: nn.Module) -> nn.Module:
    """Every number differs, those that start at zero too."""
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point() and value.numel() > 1:
                value.add_(torch.rand_like(value), alpha=0.2)
    return module.eval()


def molecules(kind: str) -> Case:
    ethanol = {"x": [[5, 0], [5, 0], [7, 0]], "edge_index": ENDS, "edge_attr": [[0, 0]] * 4}
    return Case(
        BackboneConfig(kind=kind, num_layers=2, hidden_dim=8),
        2,
        MoleculeInput(),
        {
            "toxic": TaskInfo(labels=("liver", "heart")),
            "sites": TaskInfo(labels=("a", "b", "c"), level="node", target="multiclass"),
        },
        (
            ethanol,
            {"x": [[5, 0]], "edge_index": [[], []], "edge_attr": []},
            {"x": [[6, 0], [8, 1]], "edge_index": [[0, 1], [1, 0]], "edge_attr": [[1, 0]] * 2},
        ),
        3,
        (
            ({"x": [[5.0, 0]] * 3}, "x: got 5.0, expected an integer"),
            ({"edge_attr": [[0.5, 0]] * 4}, "edge_attr: got 0.5, expected an integer"),
            ({"edge_attr": [[2**63, 0]] * 4}, "edge_attr: got 9223372036854775808, expected an"),
            ({"x": [[120, 0]] * 3}, "x: atom type: got values from 120"),
            ({"x": []}, "got no atom"),
            ({"edge_index": [[0] * 4, [0] * 4]}, "self-loop"),
            ({"edge_index": [[0, 1], [1, 2]], "edge_attr": [[0, 0]] * 2}, "one direction"),
            ({"edge_attr": None}, "got a graph with x, edge_index, but the model takes molecules"),
            ({"numbers": [6]}, "got a graph with x, edge_index, edge_attr, numbers, but"),
            ({"x": [[5, 0]] * 7}, "got 7 atoms or nodes, expected at most 6"),
            ({"edge_index": [[0] * 25, [1] * 25]}, "got 25 edges, expected at most 24"),
        ),
    )


def bonds() -> Case:
    rows = {"x": [[0, 1.5], [1, 0], [0.25, 0]], "edge_attr": [[1, 0, 2]] * 4}
    heads = {
        "toxic": DmpnnHead(hidden=(6,), batch_norm=True, correction="adapters"),
        "weight": DmpnnHead(members=2, correction="residual"),
    }
    return Case(
        DmpnnConfig(atom_dim=2, bond_dim=3, hidden_dim=8, depth=3, heads=heads),
        2,
        BondInput(),
        {
            "toxic": TaskInfo(labels=("liver", "heart")),
            "weight": TaskInfo(labels=("grams",), target="regression"),
        },
        (
            {**rows, "edge_index": ENDS},
            {"x": [[1, 2]], "edge_index": [[], []], "edge_attr": []},
            {"x": [[1, 2], [3, 4]], "edge_index": [[0, 1], [1, 0]], "edge_attr": [[5, 6, 7]] * 2},
        ),
        9,
        (
            ({"x": [[1]] * 3}, "x: got rows of \\[1\\] numbers, expected 2"),
            ({"edge_attr": [[1, 2]] * 4}, "edge_attr: got rows of \\[2\\] numbers, expected 3"),
            ({"x": [[1e39, 0]] * 3}, "x: got a number that is not finite"),
            ({"x": [], "edge_index": [[], []], "edge_attr": []}, "got no atom"),
            ({"edge_index": [[0] * 4, [0] * 4]}, "self-loop"),
            ({"edge_index": [[0, 1], [1, 2]], "edge_attr": [[0] * 3] * 2}, "one direction"),
            ({"edge_attr": None}, "got a graph with x, edge_index, but the model takes molecules"),
            ({"x": [[5, 0]] * 7}, "got 7 atoms or nodes, expected at most 6"),
            ({"edge_index": [[0] * 25, [1] * 25]}, "got 25 edges, expected at most 24"),
        ),
    )


def features(kind: str) -> Case:
    return Case(
        GraphNetworkConfig(kind=kind, in_dim=5, num_layers=2, hidden_dim=8, heads=2),
        2,
        FeatureInput(num_features={"weight": 3, "subject": 3}),
        {
            "weight": TaskInfo(labels=("grams",), target="regression"),
            "subject": TaskInfo(labels=("a", "b"), level="node", target="multiclass"),
        },
        (
            {"x": [[0, 1.5, 0], [1, 0, 0.25], [0, 0, 1]], "edge_index": ENDS},
            {"x": [[1, 2, 3]], "edge_index": [[], []]},
            {"x": [[1, 2, 3], [4, 5, 6]], "edge_index": [[0], [1]]},
        ),
        4,  # 3 nodes and 4 edges of an eighth
        (
            ({"x": [[1, 2]] * 3}, "got 2 features of a node, expected 3 for task 'weight'"),
            ({"x": [[1e39, 0, 0]] * 3}, "expected numbers that are finite in 32 bits"),
            ({"x": []}, "expected at least one row"),
            ({"edge_index": [[0], [3]]}, "got nodes from 0 to 3"),
            ({"x": None}, "got a graph with edge_index, but the model takes graphs"),
            ({"edge_attr": [[0, 0]]}, "got a graph with x, edge_index, edge_attr, but"),
            ({"x": [[1, 2, 3]] * 7}, "got 7 atoms or nodes, expected at most 6"),
            ({"edge_index": [[0] * 1201, [1] * 1201]}, "got 1201 edges, expected at most 1200"),
        ),
    )


def atoms(shape: NetworkShape) -> Case:
    energy = {"labels": ("energy",), "target": "energy_and_forces"}
    return Case(
        shape,
        0,
        AtomsInput(elements={"water": (1, 8), "ethanol": (1, 6, 8)}),
        {task: TaskInfo.model_validate(energy) for task in ("water", "ethanol")},
        (
            {"numbers": [8, 1, 1], "positions": WATER},
            {"numbers": [8], "positions": [[0, 0, 0]]},
            {"numbers": [1], "positions": [[0, 0, 0]], "cell": [[3, 0, 0], [0, 3, 0], [0, 0, 3]]},
        ),
        15,  # 3 atoms and 6 neighbours of 2
        (
            ({"numbers": [6, 1, 1]}, "numbers: got 6, expected elements that task 'water' was"),
            ({"numbers": [8, 1]}, r"positions: got shape \(3, 3\), expected \(2, 3\)"),
            ({"numbers": []}, "at least one atom"),
            ({"positions": [[0, 0, 0]] * 3}, "nearer than"),
            ({"positions": None}, "got a graph with numbers, but the model takes atoms"),
            ({"x": [[1]]}, "got a graph with numbers, positions, x, but"),
            ({"numbers": [1] * 7}, "got 7 atoms or nodes, expected at most 6"),
            (
                {
                    "numbers": [8],
                    "positions": [[0, 0, 0]],
                    "cell": [[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]],
                },
                "edges, expected at most 1200",
            ),
        ),
    )


MAKERS = {
    BackboneConfig: molecules,
    GraphNetworkConfig: features,
    ForceFieldConfig: lambda kind: atoms(
        ForceFieldConfig(kind=kind, hidden_dim=8, num_filters=8, num_interactions=2, cutoff=4.0)
    ),
    ChgnetConfig: lambda kind: atoms(
        ChgnetConfig(
            kind=kind, hidden_dim=8, num_interactions=2, num_radial=5, num_angular=5, cutoff=4.0
        )
    ),
    DmpnnConfig: lambda kind: bonds(),
}
CASES = {kind: MAKERS[family.shape](kind) for kind, family in FAMILIES.items()}
every_kind = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def changed(case: Case, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in {**case.inputs[0], **changes}.items() if v is not None}


def test_every_kind_of_network_is_of_one_family() -> None:
    kinds = [kind for family in ROWS for kind in family.kinds]
    assert sorted(kinds) == sorted(FAMILIES)
    for family in ROWS:
        assert set(family.kinds) == set(get_args(family.shape.model_fields["kind"].annotation))


@every_kind
def test_a_manifest_tells_shapes_and_schemas_by_their_kind(case: Case) -> None:
    assert TypeAdapter(AnyShape).validate_python(case.shape.model_dump()) == case.shape
    assert TypeAdapter(AnyInput).validate_python(case.schema.model_dump()) == case.schema
    manifest = case.manifest  # made anew by every access, with the time of it
    assert Manifest.model_validate(manifest.model_dump()) == manifest
    assert case.manifest.family is case.family
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        TypeAdapter(AnyShape).validate_python({**case.shape.model_dump(), "kind": "abacus"})


@every_kind
def test_a_manifest_refuses_what_is_another_familys(case: Case) -> None:
    for other in ROWS:
        if other.schema is case.family.schema:
            continue
        stranger = next(known for known in CASES.values() if known.family is other)
        with pytest.raises(ValidationError, match="which takes something else"):
            make_manifest("m", "1", case.shape, 0, RouterConfig(), case.infos, stranger.schema)
        if target := {*other.targets} - {*case.family.targets}:
            info = next(info for info in stranger.infos.values() if info.target in target)
            infos = dict.fromkeys(case.infos, info)
            with pytest.raises(ValidationError, match=rf"target: got '{info.target}' for a back"):
                make_manifest("m", "1", case.shape, 0, RouterConfig(), infos, case.schema)


@every_kind
def test_a_schema_speaks_of_the_tasks_of_the_manifest(case: Case) -> None:
    first = next(iter(case.infos))
    some = case.schema.for_tasks([first])
    assert some.of_task(first) == case.schema.of_task(first)
    if case.schema.by_task is None:
        assert (some, some.of_task(first)) == (case.schema, {})
        return
    assert list(getattr(some, case.schema.by_task)) == [first]
    with pytest.raises(ValidationError, match=f"input.{case.schema.by_task}: got entries for"):
        make_manifest("m", "1", case.shape, 0, RouterConfig(), case.infos, some)


@every_kind
def test_what_is_read_is_answered(case: Case) -> None:
    graphs = case.graphs
    model = case.family.served(case.family.model(case.network(), case.experts(), RouterConfig()))
    assert model.tasks == tuple(case.infos)
    nodes, sites = sum(graph.num_nodes for graph in graphs), len(model.site_names)
    for routing in get_args(Routing) if sites else ("own",):
        outputs = case.answers(graphs, routing=routing)
        assert list(outputs) == list(case.infos)
        for task, info in case.infos.items():
            output, rows = outputs[task], nodes if info.level == "node" else len(graphs)
            assert output.values.shape == (rows, len(info.labels))
            assert (output.target, output.is_finite) == (info.target, True)
            assert output.routing_weights.shape == (len(graphs), sites, len(case.infos))
            if sites:
                sums = output.routing_weights.sum(-1)
                torch.testing.assert_close(sums, torch.ones_like(sums))
            assert (output.forces is not None) == (info.target == "energy_and_forces")
            if output.forces is not None:
                assert output.forces.shape == (nodes, 3)


@every_kind
def test_answers_of_other_graphs_and_tasks_do_not_matter(case: Case) -> None:
    graphs = case.graphs
    together = case.answers(graphs)
    ends = torch.tensor([graph.num_nodes for graph in graphs]).cumsum(0).tolist()
    for k, graph in enumerate(graphs):
        own = slice(ends[k] - graph.num_nodes, ends[k])
        for task, output in case.answers([graph]).items():
            rows = own if case.infos[task].level == "node" else slice(k, k + 1)
            expected = together[task].values[rows]
            torch.testing.assert_close(output.values, expected, rtol=CLOSE, atol=CLOSE)
            if output.forces is not None and (forces := together[task].forces) is not None:
                torch.testing.assert_close(output.forces, forces[own], rtol=CLOSE, atol=CLOSE)


@every_kind
def test_the_served_model_answers_the_same(case: Case) -> None:
    family, tasks = case.family, tuple(case.infos)[:1]
    model, batch = (case.family.model(case.network(), case.experts(), RouterConfig()), case.graphs)
    with torch.inference_mode():
        expected = family.answer(model, family.collate(batch), tasks, "own")
        answers = family.answer(family.served(model), family.collate(batch), tasks, "own")
    torch.testing.assert_close(answers[tasks[0]].values, expected[tasks[0]].values)


@every_kind
def test_cost_is_known_before_and_after_reading(case: Case) -> None:
    costs = [case.family.cost(graph) for graph in case.graphs]
    assert costs[0] == case.cost
    assert min(costs) >= 1
    assert costs[0] == max(costs)
    assert case.family.estimate(case.inputs[0], LIMITS) == case.cost
    assert case.family.estimate({}, LIMITS) == 1
    vast = {name: value * 10**4 for name, value in case.inputs[0].items()}
    assert case.family.estimate(vast, LIMITS) <= 6 + 2 * 6 * 5 + 6 * 200


@every_kind
def test_the_smallest_input_is_read_and_answered_by_its_task(case: Case) -> None:
    for task in case.infos:
        graph = case.family.smallest(case.shape, case.schema, task)
        assert case.family.cost(graph) >= 1
        assert case.answers([graph], [task])[task].is_finite


@every_kind
def test_tensors_make_the_graph_again(case: Case) -> None:
    for graph in case.graphs:
        again = type(graph)(*tensors_of(graph))
        pairs = zip(tensors_of(graph), tensors_of(again), strict=True)
        assert all(one.equal(other) for one, other in pairs)
        types = case.family.atom_types(graph)
        assert types is None or types.shape == (graph.num_nodes,)


@every_kind
def test_what_cannot_be_read_is_refused_with_a_sentence(case: Case) -> None:
    assert len(case.refused) >= 8
    for changes, message in case.refused:
        with pytest.raises(InvalidInputError, match=message):
            case.read(changed(case, changes))


@every_kind
def test_size_is_refused_without_reading(case: Case) -> None:
    large = {name: value * 7 for name, value in case.inputs[0].items()}
    with pytest.raises(MoleculeError, match="expected at most 6") as error:
        case.family.check(large, LIMITS)
    assert error.value.code == "too_many_atoms"


@every_kind
def test_nothing_makes_no_batch(case: Case) -> None:
    with pytest.raises(InvalidInputError, match="at least one"):
        case.family.collate([])


@every_kind
def test_texts_are_read_where_a_family_reads_them(case: Case) -> None:
    read = case.family.read_texts
    if read is None:
        assert "SMILES" not in case.family.fields.description
        return
    good, bad = read(["CCO", "C1CC"], case.shape, case.schema, SizeLimits(max_atoms=60))
    assert isinstance(bad, MoleculeError)
    assert not isinstance(good, MoleculeError)
    assert (good.smiles, good.graph.num_nodes) == ("CCO", 3)
    (large,) = read(["CCO"], case.shape, case.schema, SizeLimits(max_atoms=2))
    assert isinstance(large, MoleculeError)
    assert large.code == "too_many_atoms"


@every_kind
def test_a_family_crosses_between_processes(case: Case) -> None:
    family = pickle.loads(pickle.dumps(case.family))
    assert type(family) is type(case.family)
    assert vars(family) == {}


@every_kind
def test_an_artifact_answers_as_what_it_was_made_of(case: Case, tmp_path: Path) -> None:
    network, experts = case.network(), case.experts()
    save_artifact(tmp_path / "pico", case.manifest, network, experts)
    artifact, graphs = load_artifact(tmp_path / "pico"), case.graphs
    batch = case.family.collate(graphs)
    answers = case.family.answer(artifact.model, batch, tuple(case.infos), "own")
    for task, expected in case.answers(graphs).items():
        assert torch.equal(answers[task].values, expected.values)
        if expected.forces is not None:
            assert answers[task].forces is not None
            assert torch.equal(answers[task].forces, expected.forces)
    some = load_artifact(tmp_path / "pico", tasks=list(case.infos)[1:])
    assert some.model.tasks == tuple(case.infos)[1:]


@every_kind
def test_answers_that_are_not_finite_are_not_written(case: Case, tmp_path: Path) -> None:
    """Finite weights are not enough."""
    experts = case.experts()
    first, weights = next(iter(experts.items()))
    with torch.no_grad():
        for name, value in weights.named_parameters():
            if name.startswith(("head.", "lin", "encoder", "members.")):
                value.fill_(3e38)
    with pytest.raises(ArtifactError, match=f"answers of {first} that are not finite"):
        save_artifact(tmp_path / "pico", case.manifest, case.network(), experts)
    assert not (tmp_path / "pico").exists()


@every_kind
def test_an_expert_that_contradicts_the_manifest_is_not_written(case: Case, tmp_path: Path) -> None:
    experts = case.experts()
    first, expert = next(iter(experts.items()))
    for name, buffer in expert.named_buffers():
        if name.endswith(("adapters.norm_var", "running_var")):
            buffer.neg_()
        elif name == "elements":
            buffer.logical_not_()
    message = rf"tasks/{first}\.safetensors: (adapters|batch_norm|got elem)"
    with pytest.raises(ArtifactError, match=message):
        save_artifact(tmp_path / "pico", case.manifest, case.network(), experts)


def test_kinds_of_one_family_answer_differently() -> None:
    """Or the tests above would prove little."""
    case = CASES["gcn"]
    other = replace(case, shape=case.shape.model_copy(update={"kind": "gin"}))
    assert not torch.equal(
        case.answers(case.graphs)["toxic"].values, other.answers(case.graphs)["toxic"].values
    )


def test_a_gcn_whose_tasks_are_labels_of_molecules_is_served_compiled() -> None:
    info = TaskInfo(labels=("liver", "heart"))
    case = replace(CASES["gcn"], infos={"toxic": info})
    model = case.family.model(case.network(), case.experts(), RouterConfig())
    served, batch = case.family.served(model), case.family.collate(case.graphs)
    assert isinstance(served, CompiledModel)
    with torch.inference_mode():
        expected = case.family.answer(model, batch, ["toxic"], "own")["toxic"].values
        answer = case.family.answer(served, batch, ["toxic"], "own")["toxic"].values
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


def test_parts_know_their_family(tmp_path: Path) -> None:
    case = CASES["pyg_gcn"]
    save_artifact(tmp_path / "pico", case.manifest, case.network(), case.experts())
    components = load_components(tmp_path / "pico")
    assert components.manifest.family is FAMILIES["pyg_gcn"]
    with pytest.raises(ArtifactError, match="of kind 'graph', expected one for molecules"):
        _ = components.molecular_backbone


@every_kind
def test_candidates_are_for_models_that_mix(case: Case) -> None:
    """Of two tasks with one candidate the screen leaves nothing out; with three it does."""
    infos = {f"{task}{k}": info for task, info in case.infos.items() for k in range(2)}
    field = case.schema.by_task
    widths = (
        {} if field is None else {task: case.schema.of_task(task[:-1])[field] for task in infos}
    )
    schema = case.schema if field is None else case.schema.model_copy(update={field: widths})
    case = replace(case, infos=infos, schema=schema)
    if isinstance(case.shape, DmpnnConfig):
        heads = {task: case.shape.heads[task[:-1]] for task in infos}
        case = replace(case, shape=case.shape.model_copy(update={"heads": heads}))
    nearest = {task: tuple(other for other in infos if other != task)[:1] for task in infos}
    router = RouterConfig(candidates=1)
    manifest = case.manifest.model_copy(update={"nearest": nearest, "router": router})
    components = ArtifactComponents(manifest, case.network(), case.experts(), "")
    sites = case.family.model(case.network(), case.experts(), RouterConfig()).site_names
    if not sites:
        with pytest.raises(ArtifactError, match="expected it only where experts are mixed"):
            ScreenedModel(components)
        return
    screened, batch = ScreenedModel(components), case.family.collate(case.graphs)
    whole = case.answers(case.graphs)
    answers = case.family.answer(case.family.served(screened), batch, tuple(infos), "own")
    for task, output in answers.items():
        torch.testing.assert_close(output.values, whole[task].values, rtol=1e-4, atol=1e-5)
    mixed = case.family.answer(screened, batch, tuple(infos), "moe")
    for task, output in mixed.items():
        left_out = [k for k, other in enumerate(infos) if other not in (task, *nearest[task])]
        assert not output.routing_weights[..., left_out].any()
