"""GNNMerge, GNNMerge++ and Git Re-Basin: exactness, oracles, and laws on all eight kinds of
layers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merging.mergers.base import Calibration, MergeInputs, MergeResult
from merging.mergers.git_rebasin import assign, chain_of
from merging.mergers.linear_maps import BatchEdges, LayerCall, layer_output, linear_maps
from merging.mergers.registry import MERGERS, merge
from merging.mergers.regmean import least_squares_weight
from merging.mergers.task_vector import is_merged
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
from models.data.molecule import collate
from models.data.smiles import featurize
from models.errors import InvalidInputError
from models.networks.pyg import GraphNetwork, GraphNetworkConfig
from tests.conftest import KINDS, SMILES, assert_law, pico_config, random_backbone

State = dict[str, Tensor]
DEEP = "pyg_gin of three Linears"
PYG = ("pyg_gcn", "pyg_sage", "pyg_gin", DEEP, "pyg_gat")
ALL = (*KINDS, *PYG)
METHODS: dict[str, dict[str, Any]] = {
    "gnnmerge_pp": {},
    "gnnmerge_pp merged": {"inputs": "merged"},
    "gnnmerge": {"epochs": 3},
}


def network_config(kind: str) -> GraphNetworkConfig:
    if kind == DEEP:
        return GraphNetworkConfig(
            kind="pyg_gin", in_dim=6, num_layers=2, hidden_dim=8, mlp_layers=3
        )
    return GraphNetworkConfig(kind=kind, in_dim=6, num_layers=3, hidden_dim=8, heads=2)


def random_state(kind: str, seed: int) -> State:
    """A network whose every number differs, biases too."""
    if kind in KINDS:
        return random_backbone(pico_config(kind), seed).state_dict()
    generator = torch.Generator().manual_seed(seed)
    state = GraphNetwork(network_config(kind)).state_dict()
    return {
        key: value if "eps" in key else torch.rand(value.shape, generator=generator) - 0.5
        for key, value in state.items()
    }


def random_batch(seed: int, graphs: int = 3, nodes: int = 14) -> GraphBatch:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(graphs):
        above = torch.triu(torch.rand(nodes, nodes, generator=generator) < 0.2, diagonal=1)
        edges = (above | above.T).nonzero().T
        made.append(FeatureGraph(torch.randn(nodes, 6, generator=generator), edges))
    return collate_features(made)


def calibration(kind: str, seed: int) -> Calibration:
    head = {"weight": torch.ones(1, 16 if kind in KINDS else 8), "bias": torch.zeros(1)}
    if kind in KINDS:
        subsets = SMILES[seed % 2 :: 2], SMILES[(seed + 1) % 2 :: 3]
        return Calibration(
            head, tuple(collate([featurize(one).graph for one in subset]) for subset in subsets)
        )
    return Calibration(head, (random_batch(seed), random_batch(seed + 50)))


def given(kind: str, *seeds: int) -> MergeInputs:
    """Models with these seeds; the same seed is the same model. Each task has graphs of its own."""
    tasks = {f"task{k}": random_state(kind, seed) for k, seed in enumerate(seeds)}
    config = pico_config(kind) if kind in KINDS else network_config(kind)
    return MergeInputs(
        random_state(kind, 99),
        tasks,
        config,
        {task: calibration(kind, k) for k, task in enumerate(tasks)},
    )


def run(method: str, of: MergeInputs, **options: Any) -> MergeResult:
    return merge(method.split()[0], of, {**METHODS.get(method, {}), **options})


def assert_is_model(merged: State, model: State, tolerance: float = 1e-5) -> None:
    for key, value in model.items():
        if is_merged(key, value):
            torch.testing.assert_close(merged[key], value, rtol=tolerance, atol=tolerance)


def layer_calls(inputs: MergeInputs, task: str) -> list[tuple[int, LayerCall]]:
    """Every layer on every calibration batch, as the model itself computes it."""
    network, found = inputs.network(inputs.finetuned[task]), []
    with torch.no_grad():
        for batch in inputs.calibration[task].batches:
            edges, h = BatchEdges.of(batch), network.embed(batch)
            for number, layer in enumerate(network.gnns):
                call = LayerCall(layer, h, edges)
                found.append((number, call))
                h = layer_output(call)
                h = network.activate(
                    number, network.batch_norms[number](h) if len(network.batch_norms) else h
                )
            torch.testing.assert_close(h, network(batch))
    return found


@pytest.mark.parametrize("kind", ALL)
class TestCopies:
    @pytest.mark.parametrize("method", [*METHODS, "git_rebasin", "regmean"])
    @pytest.mark.parametrize("count", [1, 3])
    def test_copies_of_one_model_merge_to_it(self, kind: str, method: str, count: int) -> None:
        inputs = given(kind, *[7] * count)
        assert_is_model(
            run(method, inputs).backbone,
            inputs.finetuned["task0"],
            2e-4 if method == "regmean" else 1e-5,
        )


@pytest.mark.parametrize(
    "kind", ["gin", "gcn", "graphsage", "pyg_gcn", "pyg_sage", "pyg_gin", DEEP]
)
def test_copies_answer_as_the_model_without_the_prior_too(kind: str) -> None:
    """Not those of a GAT: its weights also enter the scores, and the aggregated inputs of a few
    molecules do not pin them down."""
    inputs = given(kind, 7, 7)
    model = inputs.finetuned["task0"]
    merged = run("gnnmerge_pp", inputs, prior="zero", ridge=1e-9).backbone
    merged |= {key: value for key, value in model.items() if not is_merged(key, value)}
    for calibrated in inputs.calibration.values():
        for batch in calibrated.batches:
            torch.testing.assert_close(
                inputs.network(merged)(batch), inputs.network(model)(batch), rtol=1e-2, atol=1e-2
            )


@pytest.mark.parametrize("kind", PYG)
@pytest.mark.parametrize("method", [name for name in MERGERS if name != "gffmerge"])
def test_every_merger_takes_graph_networks(method: str, kind: str) -> None:
    """The contract of `test_mergers`, for networks on any features."""
    inputs = given(kind, 1, 2)
    options = {"gnnmerge": {"epochs": 2}, "adamerging": {"steps": 1}}.get(method, {})
    result = merge(method, inputs, options)
    for state in (result.backbone, *result.by_task.values()):
        assert {key: value.shape for key, value in state.items()} == {
            key: value.shape for key, value in inputs.pretrained.items()
        }
        assert all(bool(value.isfinite().all()) for value in state.values())
    swapped = {task: inputs.finetuned[task] for task in reversed(inputs.finetuned)}
    again = merge(method, replace(inputs, finetuned=swapped), options)
    for key, value in result.backbone.items():
        torch.testing.assert_close(again.backbone[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ALL)
class TestLinearMaps:
    def test_the_maps_cover_all_linear_parameters(self, kind: str) -> None:
        config = pico_config(kind) if kind in KINDS else network_config(kind)
        covered = {f"gnns.0.{key}" for linear in linear_maps(config) for key, _ in linear.blocks}
        layer = {key for key in random_state(kind, 0) if key.startswith("gnns.0.")}
        left_out = {
            "gin": {"edge_embedding1.weight", "edge_embedding2.weight"},
            "gat": {"bias"},
            "pyg_gin": {"eps"},
            DEEP: {"eps"},
        }.get(kind, set())
        assert layer - covered == {f"gnns.0.{key}" for key in left_out}

    def test_inputs_times_weight_are_what_the_layer_gives(self, kind: str) -> None:
        """Its linear maps together give what PyG and `models.networks.hu2020` compute."""
        inputs = given(kind, 1)
        state = inputs.finetuned["task0"]
        for number, call in layer_calls(inputs, "task0"):
            maps = [linear for linear in linear_maps(inputs.config) if not linear.per_edge]
            outputs = [
                linear.inputs(call) @ linear.weight(state, f"gnns.{number}.").float()
                for linear in maps
            ]
            expected = layer_output(call)
            if kind == "graphsage":
                outputs = [torch.nn.functional.normalize(outputs[0], dim=-1)]
            if kind == "gat":
                outputs = [torch.stack(outputs).mean(0) + call.layer.bias]
            if kind == "pyg_gat":
                outputs = [torch.cat(outputs, 1)]
            torch.testing.assert_close(outputs[-1], expected, rtol=1e-4, atol=1e-5)

    def test_written_is_read(self, kind: str) -> None:
        state = random_state(kind, 3)
        config = pico_config(kind) if kind in KINDS else network_config(kind)
        for linear in linear_maps(config):
            written = torch.randn(
                linear.weight(state, "gnns.1.").shape,
                generator=torch.Generator().manual_seed(0),
                dtype=torch.float64,
            )
            linear.write(state, "gnns.1.", written)
            torch.testing.assert_close(
                linear.weight(state, "gnns.1."), written, rtol=1e-6, atol=1e-6
            )


def stacked_rows(inputs: MergeInputs, map_number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per task: all rows of the first layer's linear map, and the targets; float64 numpy."""
    found = []
    for task, state in inputs.finetuned.items():
        linear = linear_maps(inputs.config)[map_number]
        z = torch.cat(
            [
                linear.inputs(call).detach().double()
                for number, call in layer_calls(inputs, task)
                if number == 0
            ]
        ).numpy()
        found.append((z, z @ linear.weight(state, "gnns.0.").numpy()))
    return found


class TestClosedForm:
    @pytest.mark.parametrize("kind", ALL)
    def test_is_numpys_least_squares_with_the_ridge_as_further_rows(self, kind: str) -> None:
        inputs, ridge = given(kind, 1, 2, 3), 1e-3
        merged = run("gnnmerge_pp", inputs, ridge=ridge).backbone
        for number, linear in enumerate(linear_maps(inputs.config)):
            rows = stacked_rows(inputs, number)
            prior = (
                torch.stack([linear.weight(own, "gnns.0.") for own in inputs.finetuned.values()])
                .mean(0)
                .numpy()
            )
            z = np.concatenate(
                [z / len(z) ** 0.5 for z, _ in rows] + [ridge**0.5 * np.eye(len(prior))]
            )
            y = np.concatenate([y / len(y) ** 0.5 for _, y in rows] + [ridge**0.5 * prior])
            expected = np.linalg.lstsq(z, y)[0]
            np.testing.assert_allclose(
                linear.weight(merged, "gnns.0.").numpy(), expected, rtol=1e-4, atol=1e-4
            )

    def test_gcn_is_regmean_on_aggregated_inputs(self) -> None:
        inputs = given("pyg_gcn", 1, 2)
        linear = linear_maps(inputs.config)[0]
        rows = stacked_rows(inputs, 0)
        grams = torch.stack(
            [torch.from_numpy(z.T @ z / len(z)) + 1e-9 * torch.eye(7) for z, _ in rows]
        )
        weights = torch.stack(
            [linear.weight(state, "gnns.0.").T for state in inputs.finetuned.values()]
        )
        merged = run("gnnmerge_pp", inputs, ridge=1e-9).backbone
        torch.testing.assert_close(
            linear.weight(merged, "gnns.0."),
            least_squares_weight(grams, weights).T,
            rtol=1e-4,
            atol=1e-5,
        )

    @pytest.mark.parametrize(
        ("method", "kind", "key"),
        [
            ("gnnmerge", "pyg_gcn", "bias"),
            ("gnnmerge_pp", "pyg_gcn", "bias"),
            ("gnnmerge_pp", "pyg_sage", "lin_l.bias"),
            ("gnnmerge_pp", "pyg_gin", "nn.2.bias"),
            ("gnnmerge_pp", "pyg_gat", "bias"),
            ("gnnmerge_pp merged", "pyg_gcn", "bias"),
        ],
    )
    def test_bias_is_merged(self, method: str, kind: str, key: str) -> None:
        """Two models that differ in a bias only and see the same, merged from nothing: the bias
        ends in the middle."""
        inputs = given(kind, 1, 1)
        name = f"gnns.2.{key}"
        other = inputs.finetuned["task1"]
        inputs.finetuned["task1"] = {**other, name: other[name] + 1}
        options = {"epochs": 600} if method == "gnnmerge" else {"ridge": 1e-9}
        same = dict.fromkeys(inputs.finetuned, inputs.calibration["task0"])
        merged = run(method, replace(inputs, calibration=same), prior="zero", **options).backbone
        torch.testing.assert_close(
            merged[name], other[name] + 0.5, rtol=0, atol=0.1 if method == "gnnmerge" else 2e-3
        )

    @pytest.mark.parametrize("kind", ALL)
    def test_sequential_is_teacher_forced_for_the_first_layer(self, kind: str) -> None:
        """Both see the same there, where nothing is averaged before it: Hu et al.'s networks share
        their embedding tables here."""
        inputs = given(kind, 1, 2)
        shared = inputs.finetuned["task0"]
        alike = [
            key
            for key in shared
            if "x_embedding" in key or (kind == "gin" and "edge_embedding" in key)
        ]
        inputs.finetuned["task1"] = {
            **inputs.finetuned["task1"],
            **{key: shared[key] for key in alike},
        }
        forced, own = (
            run("gnnmerge_pp", inputs, inputs=source, attention="average").backbone
            for source in ("teacher", "merged")
        )
        first = [
            key
            for key in forced
            if key.startswith("gnns.0.")
            and is_merged(key, forced[key])
            and "mlp.2" not in key
            and "nn.2" not in key
            and "nn.4" not in key
        ]
        counts = {"gat": 6, "pyg_gcn": 2, "pyg_sage": 3, "pyg_gin": 2, DEEP: 2}
        assert len(first) == counts.get(kind, 4)
        for key in first:
            torch.testing.assert_close(own[key], forced[key], rtol=1e-5, atol=1e-5)
        assert any(
            not torch.allclose(own[key], forced[key], atol=1e-3)
            for key in forced
            if key.startswith("gnns.1.")
        )

    def test_is_accumulated_in_float64(self) -> None:
        """Large features that cancel: in float32 the Gram matrix would have lost the small
        direction."""
        inputs = given("pyg_gin", 1, 2)
        batch = random_batch(0)
        big = replace(batch, x=batch.x * 1e3 + 1e4)
        inputs = replace(
            inputs,
            calibration={
                task: replace(own, batches=(big,)) for task, own in inputs.calibration.items()
            },
        )
        rows = stacked_rows(inputs, 0)
        merged = run("gnnmerge_pp", inputs).backbone
        linear = linear_maps(inputs.config)[0]
        weight = linear.weight(merged, "gnns.0.").numpy()
        mean = sum(y for _, y in rows) / 2  # on the same rows the best answer is the mean of both
        np.testing.assert_allclose(rows[0][0] @ weight, mean, rtol=1e-4, atol=1e-2)

    @pytest.mark.parametrize("nodes", [2, 40])
    def test_only_the_chosen_nodes_count_and_few_rows_give_the_same_as_many(
        self, nodes: int
    ) -> None:
        inputs = given("pyg_sage", 1, 2)
        chosen = {
            task: replace(own, nodes=(torch.arange(nodes), torch.tensor([5])))
            for task, own in inputs.calibration.items()
        }
        merged = run("gnnmerge_pp", replace(inputs, calibration=chosen), ridge=1e-4).backbone
        linear, sizes = linear_maps(inputs.config)[0], [nodes, 1]
        z, y = [], []
        for task, state in inputs.finetuned.items():
            first = [call for number, call in layer_calls(inputs, task) if number == 0]
            rows = torch.cat(
                [
                    linear.inputs(call)[:size] if size > 1 else linear.inputs(call)[5:6]
                    for call, size in zip(first, sizes, strict=True)
                ]
            )
            rows = rows.detach().double().numpy() / (nodes + 1) ** 0.5
            z.append(rows)
            y.append(rows @ linear.weight(state, "gnns.0.").numpy())
        prior = (
            torch.stack([linear.weight(own, "gnns.0.") for own in inputs.finetuned.values()])
            .mean(0)
            .numpy()
        )
        system = np.concatenate([*z, 1e-2 * np.eye(len(prior))]), np.concatenate([*y, 1e-2 * prior])
        np.testing.assert_allclose(
            linear.weight(merged, "gnns.0.").numpy(),
            np.linalg.lstsq(*system)[0],
            rtol=1e-3,
            atol=1e-4,
        )

    def test_adam_comes_near_the_closed_form(self) -> None:
        inputs = given("pyg_gcn", 1, 2)
        solved, descended = run("gnnmerge_pp", inputs), run("gnnmerge", inputs, epochs=600)
        for name, left in solved.record["left_missing"].items():
            assert 0 <= left <= descended.record["left_missing"][name] + 1e-6 <= 1
            assert descended.record["left_missing"][name] == pytest.approx(left, abs=0.02)

    @pytest.mark.parametrize("kind", ["gat", "pyg_gat"])
    def test_attention_is_solved_or_averaged(self, kind: str) -> None:
        inputs = given(kind, 1, 2)
        key = "gnns.1.att" if kind == "gat" else "gnns.1.att_src"
        mean = torch.stack([state[key] for state in inputs.finetuned.values()]).mean(0)
        torch.testing.assert_close(
            run("gnnmerge_pp", inputs, attention="average").backbone[key], mean
        )
        assert not torch.allclose(run("gnnmerge_pp", inputs).backbone[key], mean, atol=1e-3)

    def test_nodes_must_be_given_for_every_batch(self) -> None:
        with pytest.raises(InvalidInputError, match="nodes of 1 batches, expected of 2"):
            Calibration({}, (random_batch(0), random_batch(1)), nodes=(torch.tensor([0]),))


def shuffled(inputs: MergeInputs, state: State, seed: int) -> tuple[State, Tensor]:
    """The same function with hidden units in a random order that the network allows, and the source
    of every unit of the embedding."""
    chain, generator = chain_of(inputs.config), torch.Generator().manual_seed(seed)
    orders = {}
    for space, size in chain.sizes.items():
        blocks = chain.blocks.get(space, 1)
        within = [torch.randperm(size // blocks, generator=generator) for _ in range(blocks)]
        orders[space] = torch.cat(
            [
                within[k] + k * (size // blocks)
                for k in torch.randperm(blocks, generator=generator).tolist()
            ]
        )
    out = chain.apply(state, orders)
    for key in state:
        if "running" in key:
            out[key] = state[key][orders[f"h{int(key.split('.')[1]) + 1}"]]
    return out, orders[chain.output]


@pytest.mark.parametrize("kind", ALL)
class TestGitRebasin:
    def test_orders_do_not_change_what_the_network_says(self, kind: str) -> None:
        inputs = given(kind, 1)
        other, order = shuffled(inputs, inputs.finetuned["task0"], 5)
        model = inputs.network(inputs.finetuned["task0"]).double()
        reordered = inputs.network(other).double()
        for batch in inputs.calibration["task0"].batches:
            precise = replace(batch, x=batch.x.double() if batch.x.is_floating_point() else batch.x)
            assert_law(reordered(precise), model(precise)[:, order])

    @pytest.mark.parametrize("copies", [1, 3])
    def test_reordered_copies_merge_back_to_the_model_and_heads_follow(
        self, kind: str, copies: int
    ) -> None:
        inputs = given(kind, 1)
        model = inputs.finetuned["task0"]
        orders = {}
        for k in range(1, copies + 1):
            inputs.finetuned[f"task{k}"], orders[f"task{k}"] = shuffled(inputs, model, k)
        result = run("git_rebasin", inputs)
        assert_is_model(result.backbone, model, 1e-6)
        head = torch.randn(
            2, len(result.head_orders["task0"]), generator=torch.Generator().manual_seed(0)
        )
        torch.testing.assert_close(result.head_for("task0", {"weight": head})["weight"], head)
        for task, order in orders.items():
            own = {"weight": head[:, order], "bias": torch.zeros(2)}
            torch.testing.assert_close(result.head_for(task, own)["weight"], head)

    def test_agrees_more_than_the_plain_mean(self, kind: str) -> None:
        inputs = given(kind, 1, 2, 3)
        result, chain = run("git_rebasin", inputs), chain_of(inputs.config)
        assert result.record["units_moved"]["task0"] == 0
        assert result.record["units_moved"]["task1"] > 0
        norms = [
            sum(float(state[key].square().sum()) for key in chain.axes)
            for state in (result.backbone, run("weight_average", inputs).backbone)
        ]
        assert norms[0] > norms[1]  # the more the models agree, the longer their mean


class TestAssign:
    def test_is_the_best_of_all_orders_that_keep_blocks(self) -> None:
        agreement = np.random.default_rng(0).normal(size=(6, 6))
        orders = [
            [2 * a + x, 2 * a + 1 - x, 2 * b + y, 2 * b + 1 - y, 2 * c + z, 2 * c + 1 - z]
            for a, b, c in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
            for x in (0, 1)
            for y in (0, 1)
            for z in (0, 1)
        ]
        best = max(orders, key=lambda order: agreement[range(6), order].sum())
        assert assign(agreement, 3).tolist() == best
        assert agreement[range(6), assign(agreement)].sum() >= agreement[range(6), best].sum()


def test_a_head_answers_for_graphs_or_for_nodes() -> None:
    batch = random_batch(0)
    head = {
        "weight": torch.randn(2, 6, generator=torch.Generator().manual_seed(0)),
        "bias": torch.tensor([1.0, 2.0]),
    }
    nodes = Calibration(head, (batch,), "node").logits(batch.x, batch)
    torch.testing.assert_close(nodes, batch.x @ head["weight"].T + head["bias"])
    torch.testing.assert_close(
        Calibration(head, (batch,)).logits(batch.x, batch)[0], nodes[:14].mean(0)
    )
