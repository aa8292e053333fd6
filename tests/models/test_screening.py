import json
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest
import torch

from models.artifact import ArtifactComponents, load_components, read_manifest, save_artifact
from models.data.batch import GraphBatch
from models.data.molecule import collate
from models.data.smiles import featurize
from models.errors import InvalidInputError, UnknownTaskError
from models.experts.bank import NodeAdapterBank
from models.experts.expert import Expert, TaskExpert
from models.experts.router import RouterConfig, node_distances
from models.experts.unified import Routing, UnifiedModel
from models.manifest import StreamInfo, make_manifest
from models.screening import ScreenedModel, _Site, candidate_experts, is_screened, nearest_experts
from models.task import TaskInfo
from models.transport.problem import Support
from tests.conftest import (
    SMILES,
    pico_config,
    random_backbone,
    random_experts,
    random_shared_experts,
    random_stream,
)

GRAPHS = [featurize(smiles).graph for smiles in SMILES]
RANK = 16


def families(close: float = 0.02) -> dict[str, Expert]:
    """Build three unrelated experts, and three close relatives of each; none is ever silent, so
    there are no ties.
    """
    generator = torch.Generator().manual_seed(1)
    found = {}
    for task, original in random_experts(pico_config(), RANK).items():
        for k in range(4):
            found[f"{task}{k}"] = Expert(pico_config(), RANK, original.label_names)
            found[f"{task}{k}"].load_state_dict(original.state_dict())
            for value in found[f"{task}{k}"].adapters.sites.parameters():
                value.data += close * k * torch.randn(value.shape, generator=generator)
    return found


def components_of(
    folder: Path, experts: Mapping[str, Expert], router: RouterConfig, most: int
) -> ArtifactComponents:
    backbone = random_backbone(pico_config())
    manifest = make_manifest(
        "many",
        "1",
        pico_config(),
        RANK,
        router,
        {task: TaskInfo(labels=expert.label_names) for task, expert in experts.items()},
    )
    nearest = nearest_experts(backbone, experts, router, GRAPHS, most)
    save_artifact(folder, manifest.model_copy(update={"nearest": nearest}), backbone, experts)
    return load_components(folder)


def assert_same(
    components: ArtifactComponents,
    batch: GraphBatch,
    routing: Routing,
    tasks: list[str] | None,
    least: float,
) -> None:
    """Check the answers for all molecules whose full mixture gives no weight to an expert that is
    not a candidate; they must be at least a share `least` of all.
    """
    expected = UnifiedModel(components.backbone, components.experts, components.manifest.router)(
        batch, tasks, routing
    )
    got = ScreenedModel(components)(batch, tasks, routing)
    assert list(got.logits) == list(expected.logits) == list(got.routing_weights)
    covered = []
    for task, logits in expected.logits.items():
        left_out = [
            k
            for k, other in enumerate(components.experts)
            if other not in candidate_experts(components.manifest, task)
        ]
        clear = (expected.routing_weights[task][..., left_out] == 0).all(-1).all(-1)
        # compiled models are float32 only: 3e-5 was seen with AVX2 and with AVX-512
        torch.testing.assert_close(got.logits[task][clear], logits[clear], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            got.routing_weights[task][clear],
            expected.routing_weights[task][clear],
            rtol=0,
            atol=2e-5,
        )
        covered.append(clear.float().mean())
    assert torch.stack(covered).mean() >= least


def test_relatives_are_nearest() -> None:
    experts = families()
    nearest = nearest_experts(random_backbone(pico_config()), experts, RouterConfig(), GRAPHS, 3)
    assert {task: {name[:-1] for name in others} for task, others in nearest.items()} == {
        task: {task[:-1]} for task in experts
    }
    assert all(task not in others for task, others in nearest.items())


def test_the_order_is_that_of_the_router_where_mass_cannot_move() -> None:
    """For a single atom the node screen is the transport problem; with one mixed layer and no other
    site of weight, the order is the router's."""
    experts, graphs = families(0.3), [featurize("C").graph]
    backbone, batch = random_backbone(pico_config()), collate(graphs)
    router = RouterConfig(solver="exact", mixed_layers=0, graph_temperature=0.5)
    weights = UnifiedModel(backbone, experts, router)(batch, ["beta1"], "moe").routing_weights[
        "beta1"
    ]
    expected = [list(experts)[k] for k in weights[0, -1].argsort(descending=True)]
    assert nearest_experts(backbone, experts, router, graphs, 99, ["beta1"]) == {
        "beta1": tuple(task for task in expected if task != "beta1")
    }
    bank = NodeAdapterBank([expert.adapters.node_adapters[2] for expert in experts.values()])
    support = Support.from_graph(batch.edge_index, batch.batch, 1)
    h = torch.rand(1, 16, generator=torch.Generator().manual_seed(0))
    exact = node_distances(
        bank.project(h.unsqueeze(1)), bank.gram, torch.tensor([5]), support, router
    )[0, 0]
    torch.testing.assert_close(
        _Site([e.adapters.node_adapters[2] for e in experts.values()], False, 0.1).distances(h, 5),
        exact,
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("routing", get_args(Routing))
@pytest.mark.parametrize("tasks", [None, ["gamma2", "alpha0"]])
def test_candidates_with_the_top_k_give_the_full_answer(
    tmp_path: Path, molecules: GraphBatch, routing: Routing, tasks: list[str] | None
) -> None:
    components = components_of(tmp_path / "a", families(), RouterConfig(top_k=3, candidates=8), 8)
    assert_same(components, molecules, routing, tasks, least=0.8)


def test_almost_all_candidates_of_unlike_experts(tmp_path: Path, molecules: GraphBatch) -> None:
    components = components_of(
        tmp_path / "a", families(0.5), RouterConfig(top_k=3, candidates=10), 11
    )
    assert_same(components, molecules, "moe", None, least=0.8)


def test_too_few_candidates_still_sum_to_one_and_leave_the_others_zero(
    tmp_path: Path, molecules: GraphBatch
) -> None:
    components = components_of(tmp_path / "a", families(), RouterConfig(candidates=2), 4)
    weights = ScreenedModel(components)(molecules, ["beta1"], "moe").routing_weights["beta1"]
    assert weights.shape == (10, 4, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(10, 4))
    seen = {
        task
        for task, used in zip(components.experts, (weights > 0).any(0).any(0).tolist(), strict=True)
        if used
    }
    assert seen == set(candidate_experts(components.manifest, "beta1"))
    assert len(seen) == 3


@pytest.mark.parametrize("routing", get_args(Routing))
def test_contributions_of_nodes_sum_to_the_answers(
    tmp_path: Path, molecules: GraphBatch, routing: Routing
) -> None:
    components = components_of(tmp_path / "a", families(), RouterConfig(candidates=2), 4)
    model = ScreenedModel(components)
    labels = {"beta1": (2, 0), "alpha3": (0,)}
    logits = model(molecules, list(labels), routing).logits
    for task, split in model.node_sums(molecules, labels, routing).items():
        sums = [nodes.sum(0) for nodes in split.contributions.split(list(split.sizes))]
        found = (torch.stack(sums) + split.bias).float()
        torch.testing.assert_close(found, logits[task][:, list(labels[task])], rtol=1e-4, atol=1e-4)


def test_small_models_that_were_dropped_are_made_again(
    tmp_path: Path, molecules: GraphBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.screening._CACHED_MODELS", 1)
    model = ScreenedModel(
        components_of(tmp_path / "a", families(), RouterConfig(top_k=2, candidates=4), 4)
    )
    first, _, again = (
        model(molecules, [task], "moe").logits[task] for task in ("alpha0", "beta1", "alpha0")
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("candidates", "screened"), [(None, False), (12, False), (11, False), (10, True)]
)
def test_screened_only_where_it_leaves_something_out(
    tmp_path: Path, candidates: int | None, screened: bool
) -> None:
    components = components_of(tmp_path / "a", families(), RouterConfig(candidates=candidates), 11)
    assert is_screened(components.manifest) is screened
    assert len(candidate_experts(components.manifest, "alpha0")) == (11 if screened else 12)
    if not screened:
        with pytest.raises(InvalidInputError, match="nearest"):
            ScreenedModel(components)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    components = components_of(tmp_path / "a", families(), RouterConfig(candidates=2), 4)
    with pytest.raises(UnknownTaskError, match="delta"):
        candidate_experts(components.manifest, "delta")
    with pytest.raises(UnknownTaskError, match="delta"):
        nearest_experts(
            components.backbone, components.experts, RouterConfig(), GRAPHS, 2, ["delta"]
        )
    with pytest.raises(InvalidInputError, match="graphs"):
        nearest_experts(components.backbone, components.experts, RouterConfig(), [], 2)
    with pytest.raises(InvalidInputError, match="some of its experts"):
        ScreenedModel(load_components(tmp_path / "a", ["alpha0"]))


def test_a_lazily_loaded_question_needs_only_its_files(
    tmp_path: Path, molecules: GraphBatch
) -> None:
    whole = components_of(tmp_path / "a", families(), RouterConfig(top_k=4, candidates=8), 8)
    needed = candidate_experts(read_manifest(tmp_path / "a")[0], "beta2")
    for task in whole.experts.keys() - set(needed):
        (tmp_path / f"a/tasks/{task}.safetensors").unlink()
    few = load_components(tmp_path / "a", needed)
    got = UnifiedModel(few.backbone, few.experts, few.manifest.router)(
        molecules, ["beta2"], "moe"
    ).logits["beta2"]
    torch.testing.assert_close(
        got, ScreenedModel(whole)(molecules, ["beta2"], "moe").logits["beta2"], rtol=1e-4, atol=1e-4
    )


def test_the_table_survives_writing(tmp_path: Path) -> None:
    components = components_of(tmp_path / "a", families(), RouterConfig(candidates=2), 5)
    again = save_artifact(
        tmp_path / "b", components.manifest, components.backbone, components.experts
    )
    assert again.nearest == components.manifest.nearest
    assert {len(others) for others in again.nearest.values()} == {5}
    assert json.loads((tmp_path / "b/manifest.json").read_text())["router"]["candidates"] == 2


def sharing() -> dict[str, TaskExpert]:
    """Five tasks on one stream, `a0` and `a1` alike, between three with streams of their own."""
    shared = random_shared_experts(random_stream(pico_config(), name="a"), (1, 1, 2, 1, 3), RANK)
    shared["a_1"].graph.load_state_dict(shared["a_0"].graph.state_dict())
    own = random_experts(pico_config(), RANK)
    return {"alpha": own["alpha"], **shared, "beta": own["beta"], "gamma": own["gamma"]}


def screened_sharing(folder: Path, router: RouterConfig, most: int) -> ArtifactComponents:
    experts, backbone = sharing(), random_backbone(pico_config())
    tasks = tuple(task for task in experts if task.startswith("a_"))
    manifest = make_manifest(
        "sharing",
        "1",
        pico_config(),
        RANK,
        router,
        {task: TaskInfo(labels=expert.label_names) for task, expert in experts.items()},
        streams={"a": StreamInfo(tasks=tasks, graph_rank=RANK)},
    )
    nearest = nearest_experts(backbone, experts, router, GRAPHS, most)
    save_artifact(folder, manifest.model_copy(update={"nearest": nearest}), backbone, experts)
    return load_components(folder)


def test_tasks_of_a_shared_stream_are_ranked_at_the_graph_site() -> None:
    experts, backbone = sharing(), random_backbone(pico_config())
    router = RouterConfig(graph_temperature=0.5)
    nearest = nearest_experts(backbone, experts, router, GRAPHS, 99)
    assert all({task, *others} == experts.keys() for task, others in nearest.items())
    assert (nearest["a_0"][0], nearest["a_1"][0]) == ("a_1", "a_0")
    weights = UnifiedModel(backbone, experts, router)(collate(GRAPHS), ["a_3"], "moe")
    # the router's distances, which are minus the logarithms of its weights but for a constant
    distances = -weights.routing_weights["a_3"][:, -1].log()
    distances -= distances[:, [4]]
    expected = [list(experts)[k] for k in distances.mean(0).argsort()]
    assert nearest["a_3"] == tuple(task for task in expected if task != "a_3")


def test_all_tasks_on_one_stream_have_nearest_ones() -> None:
    shared = random_shared_experts(random_stream(pico_config(), name="a"), (1, 1, 2), RANK)
    nearest = nearest_experts(random_backbone(pico_config()), shared, RouterConfig(), GRAPHS, 1)
    assert {task: len(others) for task, others in nearest.items()} == dict.fromkeys(shared, 1)


@pytest.mark.parametrize("routing", get_args(Routing))
def test_screened_tasks_of_a_shared_stream(
    tmp_path: Path, molecules: GraphBatch, routing: Routing
) -> None:
    router = RouterConfig(top_k=2, candidates=6)
    components = screened_sharing(tmp_path / "a", router, 7)
    assert is_screened(components.manifest)
    assert_same(components, molecules, routing, None, least=0.7)
    output = ScreenedModel(components)(molecules, ["gamma", "a_2"], routing)
    assert output.embeddings.keys() >= {"gamma", "a"}


def test_routing_own_runs_a_shared_stream_once(tmp_path: Path, molecules: GraphBatch) -> None:
    """Though a small model has few tasks otherwise."""
    router = RouterConfig(top_k=2, candidates=1)
    model = ScreenedModel(screened_sharing(tmp_path / "a", router, 7))
    tasks = ("alpha", "a_0", "a_1", "a_4", "gamma")
    groups = model._groups(tasks, "own")
    assert list(groups.values()) == [["alpha"], ["a_0", "a_1", "a_4"], ["gamma"]]
    assert list(groups)[1] == tuple(f"a_{k}" for k in range(5))
