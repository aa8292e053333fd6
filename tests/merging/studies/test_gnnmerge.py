"""GNNMerge, GNNMerge++ and Git Re-Basin: exactness, oracles, and laws on all eight kinds of
layers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merging.data.files import read_json, write_json
from merging.mergers.base import Calibration, MergeInputs, MergeResult
from merging.mergers.git_rebasin import assign, chain_of
from merging.mergers.linear_parts import View, Wiring, convolved, linear_parts
from merging.mergers.registry import MERGERS, merge
from merging.mergers.regmean import regression
from merging.mergers.task_vector import is_merged
from merging.studies.gnnmerge import (
    RESULTS,
    SETTINGS,
    TITLES,
    cells,
    scores_table,
    speed_table,
    write_results,
)
from merging.studies.gnnmerge_molecules import molecules_table
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
from models.data.molecule import collate
from models.data.smiles import featurize
from models.errors import InvalidInputError
from models.networks.pyg import GraphNetwork, GraphNetworkConfig
from tests.conftest import KINDS, SMILES, assert_law, pico_config, random_backbone

State = dict[str, Tensor]
ROOT = Path(__file__).parents[3]
PYG = ("pyg_gcn", "pyg_sage", "pyg_gin", "pyg_gat")
ALL = (*KINDS, *PYG)
METHODS: dict[str, dict[str, Any]] = {
    "gnnmerge_pp": {},
    "gnnmerge_pp merged": {"inputs": "merged"},
    "gnnmerge": {"epochs": 3},
}


def network_config(kind: str) -> GraphNetworkConfig:
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
        parts = SMILES[seed % 2 :: 2], SMILES[(seed + 1) % 2 :: 3]
        return Calibration(
            head, tuple(collate([featurize(each).graph for each in part]) for part in parts)
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


def views(inputs: MergeInputs, task: str) -> list[tuple[int, View]]:
    """Every layer on every calibration batch, as the model itself computes it."""
    network, found = inputs.network(inputs.finetuned[task]), []
    with torch.no_grad():
        for batch in inputs.calibration[task].batches:
            wiring, h = Wiring.of(batch), network.embed(batch)
            for number, layer in enumerate(network.gnns):
                view = View(layer, h, wiring)
                found.append((number, view))
                h = convolved(view)
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


@pytest.mark.parametrize("kind", ["gin", "gcn", "graphsage", "pyg_gcn", "pyg_sage", "pyg_gin"])
def test_copies_answer_as_the_model_without_the_prior_too(kind: str) -> None:
    """Not those of a GAT: its weights also enter the scores, and the aggregated inputs of a few
    molecules do not pin them down."""
    inputs = given(kind, 7, 7)
    model = inputs.finetuned["task0"]
    merged = run("gnnmerge_pp", inputs, prior="zero", ridge=1e-9).backbone
    merged |= {key: value for key, value in model.items() if not is_merged(key, value)}
    for each in inputs.calibration.values():
        for batch in each.batches:
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
class TestLinearParts:
    def test_parts_cover_what_is_linear(self, kind: str) -> None:
        config = pico_config(kind) if kind in KINDS else network_config(kind)
        covered = {f"gnns.0.{key}" for part in linear_parts(config) for key, _ in part.blocks}
        layer = {key for key in random_state(kind, 0) if key.startswith("gnns.0.")}
        left_out = {
            "gin": {"edge_embedding1.weight", "edge_embedding2.weight"},
            "gat": {"bias"},
            "pyg_gin": {"eps"},
        }.get(kind, set())
        assert layer - covered == {f"gnns.0.{key}" for key in left_out}

    def test_inputs_times_weight_are_what_the_layer_gives(self, kind: str) -> None:
        """Put together from its parts, a layer is what PyG and `models.networks.hu2020` compute."""
        inputs = given(kind, 1)
        state = inputs.finetuned["task0"]
        for number, view in views(inputs, "task0"):
            parts = [part for part in linear_parts(inputs.config) if not part.per_edge]
            outputs = [
                part.inputs(view) @ part.weight(state, f"gnns.{number}.").float() for part in parts
            ]
            expected = convolved(view)
            if kind == "graphsage":
                outputs = [torch.nn.functional.normalize(outputs[0], dim=-1)]
            if kind == "gat":
                outputs = [torch.stack(outputs).mean(0) + view.layer.bias]
            if kind == "pyg_gat":
                outputs = [torch.cat(outputs, 1)]
            torch.testing.assert_close(outputs[-1], expected, rtol=1e-4, atol=1e-5)

    def test_written_is_read(self, kind: str) -> None:
        state = random_state(kind, 3)
        config = pico_config(kind) if kind in KINDS else network_config(kind)
        for part in linear_parts(config):
            wanted = torch.randn(
                part.weight(state, "gnns.1.").shape,
                generator=torch.Generator().manual_seed(0),
                dtype=torch.float64,
            )
            part.write(state, "gnns.1.", wanted)
            torch.testing.assert_close(part.weight(state, "gnns.1."), wanted, rtol=1e-6, atol=1e-6)


def stacked_rows(inputs: MergeInputs, part_number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per task: all rows of the first layer's part, and the targets; float64 numpy."""
    found = []
    for task, state in inputs.finetuned.items():
        part = linear_parts(inputs.config)[part_number]
        z = torch.cat(
            [
                part.inputs(view).detach().double()
                for number, view in views(inputs, task)
                if number == 0
            ]
        ).numpy()
        found.append((z, z @ part.weight(state, "gnns.0.").numpy()))
    return found


class TestClosedForm:
    @pytest.mark.parametrize("kind", ALL)
    def test_is_numpys_least_squares_with_the_ridge_as_further_rows(self, kind: str) -> None:
        inputs, ridge = given(kind, 1, 2, 3), 1e-3
        merged = run("gnnmerge_pp", inputs, ridge=ridge).backbone
        for number, part in enumerate(linear_parts(inputs.config)):
            rows = stacked_rows(inputs, number)
            prior = (
                torch.stack([part.weight(state, "gnns.0.") for state in inputs.finetuned.values()])
                .mean(0)
                .numpy()
            )
            z = np.concatenate(
                [z / len(z) ** 0.5 for z, _ in rows] + [ridge**0.5 * np.eye(len(prior))]
            )
            y = np.concatenate([y / len(y) ** 0.5 for _, y in rows] + [ridge**0.5 * prior])
            expected = np.linalg.lstsq(z, y)[0]
            np.testing.assert_allclose(
                part.weight(merged, "gnns.0.").numpy(), expected, rtol=1e-4, atol=1e-4
            )

    def test_gcn_is_regmean_on_aggregated_inputs(self) -> None:
        inputs = given("pyg_gcn", 1, 2)
        part = linear_parts(inputs.config)[0]
        rows = stacked_rows(inputs, 0)
        grams = torch.stack(
            [torch.from_numpy(z.T @ z / len(z)) + 1e-9 * torch.eye(7) for z, _ in rows]
        )
        weights = torch.stack(
            [part.weight(state, "gnns.0.").T for state in inputs.finetuned.values()]
        )
        merged = run("gnnmerge_pp", inputs, ridge=1e-9).backbone
        torch.testing.assert_close(
            part.weight(merged, "gnns.0."), regression(grams, weights).T, rtol=1e-4, atol=1e-5
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
            run("gnnmerge_pp", inputs, inputs=each, attention="average").backbone
            for each in ("teacher", "merged")
        )
        first = [
            key
            for key in forced
            if key.startswith("gnns.0.")
            and is_merged(key, forced[key])
            and "mlp.2" not in key
            and "nn.2" not in key
        ]
        assert first
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
                task: replace(each, batches=(big,)) for task, each in inputs.calibration.items()
            },
        )
        rows = stacked_rows(inputs, 0)
        merged = run("gnnmerge_pp", inputs).backbone
        part = linear_parts(inputs.config)[0]
        weight = part.weight(merged, "gnns.0.").numpy()
        mean = sum(y for _, y in rows) / 2  # on the same rows the best answer is the mean of both
        np.testing.assert_allclose(rows[0][0] @ weight, mean, rtol=1e-4, atol=1e-2)

    @pytest.mark.parametrize("nodes", [2, 40])
    def test_only_the_chosen_nodes_count_and_few_rows_give_the_same_as_many(
        self, nodes: int
    ) -> None:
        inputs = given("pyg_sage", 1, 2)
        chosen = {
            task: replace(each, nodes=(torch.arange(nodes), torch.tensor([5])))
            for task, each in inputs.calibration.items()
        }
        merged = run("gnnmerge_pp", replace(inputs, calibration=chosen), ridge=1e-4).backbone
        part, sizes = linear_parts(inputs.config)[0], [nodes, 1]
        z, y = [], []
        for task, state in inputs.finetuned.items():
            first = [view for number, view in views(inputs, task) if number == 0]
            rows = torch.cat(
                [
                    part.inputs(view)[:size] if size > 1 else part.inputs(view)[5:6]
                    for view, size in zip(first, sizes, strict=True)
                ]
            )
            rows = rows.detach().double().numpy() / (nodes + 1) ** 0.5
            z.append(rows)
            y.append(rows @ part.weight(state, "gnns.0.").numpy())
        prior = (
            torch.stack([part.weight(state, "gnns.0.") for state in inputs.finetuned.values()])
            .mean(0)
            .numpy()
        )
        system = np.concatenate([*z, 1e-2 * np.eye(len(prior))]), np.concatenate([*y, 1e-2 * prior])
        np.testing.assert_allclose(
            part.weight(merged, "gnns.0.").numpy(),
            np.linalg.lstsq(*system)[0],
            rtol=1e-3,
            atol=1e-4,
        )

    def test_adam_comes_near_the_closed_form(self) -> None:
        inputs = given("pyg_gcn", 1, 2)
        solved, descended = run("gnnmerge_pp", inputs), run("gnnmerge", inputs, epochs=600)
        for part, left in solved.record["left_missing"].items():
            assert 0 <= left <= descended.record["left_missing"][part] + 1e-6 <= 1
            assert descended.record["left_missing"][part] == pytest.approx(left, abs=0.02)

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
    """The same function with hidden units in a random order that the network allows, and where each
    unit of the embedding came from."""
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


def fake_cells(folder: Path) -> None:
    """Two seeds of one cell, in which every row scores by its number, and joint training takes 200
    times as long as any merger."""
    for seed in (0, 1):
        scores = {
            name: {"cora-a": 0.01 * k + 0.1 * seed, "cora-b": 0.01 * k}
            for k, name in enumerate(TITLES)
        }
        seconds = {name: 2.0 if name == "joint" else 0.01 for name in TITLES}
        content = {
            "metric": {},
            "scores": {"same": scores, "different": scores},
            "seconds": {"same": seconds, "different": seconds},
        }
        write_json(folder / "cells" / f"in_domain_cora-pyg_gcn-seed{seed}.json", content)


class TestStudy:
    def test_summary_and_tables_of_cells(self, tmp_path: Path) -> None:
        fake_cells(tmp_path)
        content = write_results(tmp_path, None, tmp_path / "out.json")
        assert read_json(tmp_path / "out.json")["rows"] == content["rows"]
        row = next(
            each
            for each in content["rows"]
            if each["row"] == "joint" and each["initialisation"] == "different"
        )
        assert row["mean"] == {
            "mean": pytest.approx(0.035),
            "std": pytest.approx(0.03536, abs=1e-5),
            "values": pytest.approx([0.01, 0.06]),
        }
        assert row["tasks"]["cora-b"]["std"] == 0
        assert "| joint training | 3.5 ± 3.5 | 3.5 ± 3.5 |" in scores_table(
            content, "in_domain_cora"
        )
        assert "| GNNMerge++ | 0.0100 s, 200 x |" in speed_table(content)

    def test_cells_are_all_combinations_once(self) -> None:
        made = list(cells())
        assert len(set(made)) == len(made) == 5 * 4 * 3

    def test_page_holds_the_measured_tables(self) -> None:
        page, content = (ROOT / "docs/gnnmerge.md").read_text(), read_json(ROOT / RESULTS)
        measured = {row["setting"] for row in content["rows"]}
        assert {"in_domain_cora", "cross_domain", "tasks_cora"} <= measured <= SETTINGS.keys()
        for setting in measured:
            assert scores_table(content, setting) in page, setting
        assert speed_table(content) in page
        assert molecules_table(content["molecules"]) in page


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
