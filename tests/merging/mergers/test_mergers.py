"""Laws of task vectors, one contract that every registered merger keeps, and each merger by
hand."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from merging.mergers.adamerging import bernoulli_entropy, categorical_entropy
from merging.mergers.base import Calibration, MergeInputs, MergeResult, stack_states
from merging.mergers.dare import drop
from merging.mergers.emr import mask, unified_vector
from merging.mergers.fisher import diagonal_fisher, single_graphs
from merging.mergers.registry import MERGERS, merge
from merging.mergers.regmean import input_grams
from merging.mergers.residual import numbers_of
from merging.mergers.task_vector import TaskVector, is_merged, total
from merging.mergers.ties import disjoint_mean, disjoint_sum, elect_sign, trim
from models.data.atoms import Atoms
from models.data.batch import GraphBatch, mean_readout
from models.data.molecule import collate
from models.data.smiles import featurize
from models.errors import CheckpointError, ConfigError, InvalidInputError
from models.networks.force_field import ForceFieldExpert
from models.networks.hu2020 import Backbone, BackboneConfig, BackboneKind, make_backbone
from models.networks.schnet import ForceField, ForceFieldConfig
from tests.conftest import KINDS, SMILES, collate_atoms, pico_config, random_backbone
from tests.merging.mergers.test_gnnmerge import given as graph_inputs

State = dict[str, Tensor]
QUICK: dict[str, dict[str, Any]] = {
    "adamerging": {"steps": 2, "learning_rate": 0.05},
    "gnnmerge": {"epochs": 5},
    "residual": {"rank": 2},
    "wudi": {"steps": 5},
}
ROUNDED = {"gffmerge": 1e-5}
"""It solves on what the teachers' Linears give, rounded to float32; the others are exact."""
CALIBRATED = [name for name, spec in MERGERS.items() if spec.calibrated]
KEY = "gnns.1.linear.weight"
TRIED = (*KINDS, "schnet", "pyg_gcn")
KINDS_OF = {name: spec.kinds or TRIED for name, spec in MERGERS.items()}
CASES = [(method, kind) for method in MERGERS for kind in TRIED if kind in KINDS_OF[method]]
FORCES = ForceFieldConfig(
    hidden_dim=8, num_filters=6, num_interactions=1, num_gaussians=4, cutoff=3.0
)


def states(count: int, kind: BackboneKind = "gcn") -> tuple[State, dict[str, State]]:
    pretrained = random_backbone(pico_config(kind), seed=100).state_dict()
    return pretrained, {
        f"task{k}": random_backbone(pico_config(kind), seed=k).state_dict() for k in range(count)
    }


def molecules(*smiles: str) -> GraphBatch:
    return collate([featurize(one).graph for one in smiles])


def calibration(
    seed: int, labels: int, batches: tuple[GraphBatch, ...] | None = None
) -> Calibration:
    generator = torch.Generator().manual_seed(seed)
    head = {
        "weight": torch.randn(labels, 16, generator=generator),
        "bias": torch.randn(labels, generator=generator),
    }
    return Calibration(head, batches or (molecules(*SMILES[:2]), molecules(*SMILES[5:7])))


def inputs(count: int, kind: BackboneKind = "gcn") -> MergeInputs:
    """Tasks of 1, 2, 3 ... labels."""
    pretrained, finetuned = states(count, kind)
    return MergeInputs(
        pretrained,
        finetuned,
        pico_config(kind),
        {task: calibration(k, k + 1) for k, task in enumerate(finetuned)},
    )


def force_inputs(count: int) -> MergeInputs:
    """Force fields of random weights, each with a head of its own and some water."""

    def state(seed: int) -> State:
        torch.manual_seed(seed)
        return ForceField(FORCES).state_dict()

    def seen(seed: int) -> Calibration:
        torch.manual_seed(seed)
        expert, places = ForceFieldExpert(FORCES), torch.rand(4, 3, 3)
        numbers = torch.tensor([8, 1, 1])
        expert.elements[numbers] = True
        atoms = [Atoms(numbers, place) for place in places]
        batches = collate_atoms(atoms[:2], 3.0), collate_atoms(atoms[2:], 3.0)
        return Calibration(expert.state_dict(), batches)

    finetuned = {f"task{k}": state(k) for k in range(count)}
    return MergeInputs(
        state(100), finetuned, FORCES, {task: seen(k) for k, task in enumerate(finetuned)}
    )


def inputs_for(method: str, count: int, kind: str = "") -> MergeInputs:
    """Models of a kind that the method can merge; of the first one if none is named."""
    kind = kind or next(one for one in ("gcn", *TRIED) if one in KINDS_OF[method])
    if kind == "schnet":
        return force_inputs(count)
    if kind == "pyg_gcn":
        return graph_inputs(kind, *range(count))
    return inputs(count, cast(BackboneKind, kind))


def tiny(*finetuned: list[float]) -> MergeInputs:
    """Tasks a, b ... that started at 0 and have one parameter."""
    tables = {
        name: {"w": torch.tensor(values)} for name, values in zip("abc", finetuned, strict=False)
    }
    return MergeInputs({"w": torch.zeros(len(finetuned[0]))}, tables, pico_config())


def run(method: str, given: MergeInputs, **options: Any) -> MergeResult:
    return merge(method, given, {**QUICK.get(method, {}), **options})


def tensors(given: MergeInputs) -> list[Tensor]:
    """All that a merger could spoil."""
    tables = [
        given.pretrained,
        *given.finetuned.values(),
        *(seen.head for seen in given.calibration.values()),
    ]
    batches = [vars(batch) for seen in given.calibration.values() for batch in seen.batches]
    held = [value for table in (*tables, *batches) for value in table.values()]
    return [value for value in held if isinstance(value, Tensor)]


def results(result: MergeResult) -> list[State]:
    return [result.backbone, *result.by_task.values()]


class TestTaskVector:
    def test_applied_in_full_gives_the_finetuned_weights(self) -> None:
        pretrained, finetuned = states(1)
        back = TaskVector.between(pretrained, finetuned["task0"]).apply(pretrained)
        for key, value in back.items():
            expected = finetuned["task0"] if is_merged(key, value) else pretrained
            torch.testing.assert_close(value, expected[key])

    def test_batchnorm_statistics_and_counters_are_not_merged(self) -> None:
        pretrained, finetuned = states(1)
        delta = TaskVector.between(pretrained, finetuned["task0"]).delta
        assert not any("running" in key or "tracked" in key for key in delta)
        assert {
            "batch_norms.0.weight",
            "batch_norms.0.bias",
            "x_embedding1.weight",
            "gnns.2.edge_embedding1.weight",
        } <= delta.keys()

    def test_backbones_of_other_shapes_are_refused(self) -> None:
        pretrained, _ = states(0)
        missing = {key: value for key, value in pretrained.items() if key != "gnns.0.linear.bias"}
        with pytest.raises(CheckpointError, match=r"gnns\.0\.linear\.bias"):
            TaskVector.between(pretrained, missing)
        with pytest.raises(CheckpointError, match=r"gnns\.0\.linear\.bias"):
            TaskVector.between(pretrained, {**pretrained, "gnns.0.linear.bias": torch.zeros(3)})

    def test_sum(self) -> None:
        one, two = inputs(2).task_vectors().values()
        torch.testing.assert_close(total([one, two]).delta[KEY], one.delta[KEY] + two.delta[KEY])

    def test_stacked(self) -> None:
        assert torch.equal(
            stack_states([{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])}])["w"],
            torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        )


@pytest.mark.parametrize(("method", "kind"), CASES)
class TestContractOnEveryNetwork:
    def test_names_shapes_finite_and_what_is_not_merged_is_pretrained(
        self, method: str, kind: str
    ) -> None:
        given = inputs_for(method, 3, kind)
        result = run(method, given)
        assert result.by_task.keys() <= given.finetuned.keys()
        for state in results(result):
            assert {key: (value.shape, value.dtype) for key, value in state.items()} == {
                k: (v.shape, v.dtype) for k, v in given.pretrained.items()
            }
            assert all(
                bool(value.isfinite().all()) and not value.requires_grad for value in state.values()
            )
            assert all(
                torch.equal(value, given.pretrained[key])
                for key, value in state.items()
                if not is_merged(key, value)
            )

    def test_repeatable_and_free_of_task_order(self, method: str, kind: str) -> None:
        given = inputs_for(method, 3, kind)
        torch.manual_seed(1)
        once = run(method, given)
        torch.manual_seed(2)
        again = run(
            method,
            replace(
                given,
                finetuned=dict(reversed(given.finetuned.items())),
                calibration=dict(reversed(given.calibration.items())),
            ),
        )
        for task in given.finetuned:
            for key, value in once.backbone_for(task).items():
                torch.testing.assert_close(
                    value, again.backbone_for(task)[key], rtol=1e-5, atol=1e-6
                )


@pytest.mark.parametrize("method", MERGERS)
class TestContract:
    def test_inputs_stay_as_they_are_even_if_the_result_is_changed(self, method: str) -> None:
        given = inputs_for(method, 2)
        before = [value.clone() for value in tensors(given)]
        for state in results(run(method, given)):
            for value in state.values():
                value.fill_(7)
        assert all(
            torch.equal(value, old) for value, old in zip(tensors(given), before, strict=True)
        )

    def test_models_that_never_left_the_start_stay_there(self, method: str) -> None:
        given = inputs_for(method, 2)
        given = replace(given, finetuned=dict.fromkeys(given.finetuned, given.pretrained))
        for state in results(run(method, given)):
            for key, value in given.pretrained.items():
                off = ROUNDED.get(method, 0.0)
                torch.testing.assert_close(state[key], value, rtol=0, atol=off, equal_nan=False)

    def test_nothing_to_merge_is_an_error(self, method: str) -> None:
        with pytest.raises(InvalidInputError, match="at least one"):
            run(method, inputs_for(method, 0))

    def test_backbones_of_other_shapes_are_refused(self, method: str) -> None:
        given = inputs_for(method, 2)
        keys = KEY, "interactions.0.lin.weight", "gnns.1.lin.weight"
        key = next(key for key in keys if key in given.pretrained)
        del given.finetuned["task1"][key]
        with pytest.raises(CheckpointError, match=key):
            run(method, given)

    def test_unknown_option_is_refused_by_name(self, method: str) -> None:
        with pytest.raises(
            ConfigError, match=rf"options of {method}: magic: got an unknown key, expected"
        ):
            merge(method, inputs_for(method, 1), {"magic": 1})

    def test_says_where_it_is_from(self, method: str) -> None:
        spec = MERGERS[method]
        assert "arXiv:" in spec.paper
        assert [other.title for other in MERGERS.values()].count(spec.title) == 1
        assert spec.title not in MERGERS
        assert spec.name == method

    def test_networks_of_another_kind_are_refused(self, method: str) -> None:
        other = force_inputs(1) if "gcn" in KINDS_OF[method] else inputs(1)
        if other.config.kind in KINDS_OF[method]:
            assert run(method, other).backbone.keys() == other.pretrained.keys()
        else:
            with pytest.raises(ConfigError, match=rf"{method!r} for networks of kind"):
                run(method, other)


@pytest.mark.parametrize("method", CALIBRATED)
def test_missing_molecules_are_an_error(method: str) -> None:
    given = inputs_for(method, 2)
    for less in ({}, {"task0": given.calibration["task0"]}):
        with pytest.raises(InvalidInputError, match=f"calibration: .*task1.*{method}"):
            run(method, replace(given, calibration=less))


def test_no_batch_of_molecules_is_an_error() -> None:
    with pytest.raises(InvalidInputError, match="no batch"):
        Calibration({}, ())


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError,
        match="'magic', expected one of pretrained, weight_average, task_arithmetic, ties",
    ):
        merge("magic", inputs(1))


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("task_arithmetic", "scaling", 0),
        ("ties", "density", 0),
        ("ties", "combine", "max"),
        ("dare", "drop_rate", 1),
        ("dare_ties", "rescale", "l2"),
        ("fisher", "floor", 0),
        ("regmean", "alpha", 1.1),
        ("adamerging", "steps", 0),
        ("tsv_merge", "scaling", 0),
        ("wudi", "solver", "sgd"),
        ("gffmerge", "ridge", 0),
        ("gffmerge", "inputs", "sequential"),
    ],
)
def test_options_out_of_range_are_refused(method: str, option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"options of {method}: {option}"):
        merge(method, inputs(1), {option: value})


class TestArithmetic:
    def test_pretrained_merges_nothing(self) -> None:
        assert torch.equal(run("pretrained", inputs(2)).backbone[KEY], inputs(2).pretrained[KEY])

    def test_weight_average_is_the_mean(self) -> None:
        assert torch.allclose(
            run("weight_average", tiny([1.0, 2.0], [3.0, -6.0])).backbone["w"],
            torch.tensor([2.0, -2.0]),
        )

    def test_task_arithmetic_by_hand(self) -> None:
        merged = run("task_arithmetic", tiny([1.0, 2.0], [3.0, -6.0]), scaling=0.25).backbone["w"]
        torch.testing.assert_close(merged, torch.tensor([1.0, -1.0]))


class TestTies:
    def test_trim_is_over_the_whole_vector(self) -> None:
        vector = TaskVector(
            {"large": torch.tensor([[5.0, -4.0], [0.5, 3.0]]), "small": torch.tensor([0.1, -0.2])}
        )
        kept = trim(vector, 0.5).delta
        assert torch.equal(kept["large"], torch.tensor([[5.0, -4.0], [0.0, 3.0]]))
        assert torch.equal(kept["small"], torch.zeros(2))
        # never nothing
        assert torch.equal(
            trim(vector, 0.01).delta["large"], torch.tensor([[5.0, 0.0], [0.0, 0.0]])
        )

    def test_steps_by_hand(self) -> None:
        deltas = torch.tensor(
            [[5.0, 4.0, 1.0, 0.0], [-3.0, 6.0, -2.0, 0.0], [-1.0, 0.0, -4.0, 0.0]]
        )
        sign = elect_sign(deltas)
        assert sign.tolist() == [1, 1, -1, 0]
        assert disjoint_mean(deltas, sign).tolist() == [5, 5, -3, 0]
        assert disjoint_sum(deltas, sign).tolist() == [5, 10, -6, 0]

    @pytest.mark.parametrize(
        ("combine", "expected"),
        [("mean", [5.0, 5.0, 0.0, 0.0, 0.0]), ("sum", [5.0, 10.0, 0.0, 0.0, 0.0])],
    )
    def test_whole_by_hand(self, combine: str, expected: list[float]) -> None:
        given = tiny([5.0, 4.0, -1.0, 0.5, 0.0], [-3.0, 6.0, 0.1, 2.0, 0.0])
        merged = run("ties", given, density=0.4, scaling=0.5, combine=combine).backbone["w"]
        torch.testing.assert_close(merged, 0.5 * torch.tensor(expected))

    def test_conflict_takes_the_elected_sign_and_a_draw_is_zero(self) -> None:
        merged = run("ties", tiny([3.0, 1.0, 1.0], [-3.0, -4.0, 2.0]), density=1).backbone["w"]
        torch.testing.assert_close(merged, torch.tensor([0.0, -4.0, 1.5]))

    def test_a_draw_is_a_draw_in_every_order(self) -> None:
        for order in itertools.permutations([1e8, 1.0, -1e8, -1.0]):  # 1e8 + 1 is 1e8 in float32
            assert float(elect_sign(torch.tensor(order).view(4, 1))) == 0


class TestDare:
    def test_expectation_is_the_task_vector(self) -> None:
        delta = torch.tensor([1.0, -2.0, 0.5, 0.0])
        draws = torch.stack(
            [
                drop(delta, 0.75, "inverse", torch.Generator().manual_seed(seed))
                for seed in range(4000)
            ]
        )
        assert set(draws[:, 0].tolist()) == {0.0, 4.0}
        assert float((draws[:, 0] == 0).float().mean()) == pytest.approx(0.75, abs=0.03)
        # 4.5 standard deviations of the largest
        torch.testing.assert_close(draws.mean(0), delta, rtol=0, atol=0.25)

    def test_norm_is_kept_parameter_by_parameter(self) -> None:
        delta = torch.randn(40, 20, generator=torch.Generator().manual_seed(0))
        kept = drop(delta, 0.9, "norm", torch.Generator().manual_seed(0))
        torch.testing.assert_close(kept.abs().sum(), delta.abs().sum())
        assert 0.05 < float((kept != 0).float().mean()) < 0.15

    def test_nothing_left_is_zero(self) -> None:
        assert drop(
            torch.tensor([1.0]), 0.999, "norm", torch.Generator().manual_seed(0)
        ).tolist() == [0.0]

    @pytest.mark.parametrize(
        ("method", "base"), [("dare", "task_arithmetic"), ("dare_ties", "ties")]
    )
    def test_dropping_nothing_is_the_other_merger(self, method: str, base: str) -> None:
        torch.testing.assert_close(
            run(method, inputs(3), drop_rate=0).backbone, run(base, inputs(3)).backbone
        )

    def test_tasks_parameters_and_seeds_draw_differently(self) -> None:
        given = inputs(2)
        draws = [
            torch.rand(8, generator=given.generator(task, key))
            for task in ("a", "b")
            for key in ("w", "v")
        ]
        draws.append(torch.rand(8, generator=replace(given, seed=1).generator("a", "w")))
        assert len({tuple(draw.tolist()) for draw in draws}) == 5
        assert not torch.equal(
            run("dare", given).backbone[KEY], run("dare", replace(given, seed=1)).backbone[KEY]
        )

    def test_with_ties_the_rescaled_vectors_are_merged(self) -> None:
        given = tiny([1.0] * 64, [1.0] * 64)
        merged = run("dare_ties", given, drop_rate=0.5, density=1).backbone["w"]
        assert set(merged.tolist()) == {0.0, 2.0}  # the mean of those that were not dropped
        assert float((merged == 0).float().mean()) == pytest.approx(0.25, abs=0.15)


class TestEmr:
    def test_by_hand(self) -> None:
        result = run("emr", tiny([1.0, -2.0, 3.0], [2.0, 1.0, -1.0]))
        assert result.backbone["w"].tolist() == [2, -2, 3]
        torch.testing.assert_close(result.by_task["a"]["w"], torch.tensor([2.0, -2.0, 3.0]) * 6 / 7)
        torch.testing.assert_close(result.by_task["b"]["w"], torch.tensor([4.0, 0.0, 0.0]))
        assert result.record["rescalers"] == pytest.approx({"a": 6 / 7, "b": 2})

    def test_every_task_keeps_the_l1_norm_of_its_vector(self) -> None:
        given = inputs(3)
        result = run("emr", given)
        assert result.by_task.keys() == given.finetuned.keys()
        for task, vector in given.task_vectors().items():
            own = TaskVector.between(given.pretrained, result.by_task[task])
            norms = [
                sum(float(delta.abs().sum()) for delta in compared.delta.values())
                for compared in (own, vector)
            ]
            assert norms[0] == pytest.approx(norms[1], rel=1e-4)

    def test_a_task_never_moves_against_its_vector(self) -> None:
        vectors = inputs(3).task_vectors()
        unified = unified_vector(vectors.values())
        for vector in vectors.values():
            assert bool((mask(vector, unified).delta[KEY] * vector.delta[KEY] >= 0).all())

    def test_a_draw_and_a_task_without_a_vector_are_no_division_by_zero(self) -> None:
        result = run("emr", tiny([1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]))
        assert all(state["w"].tolist() == [0, 0] for state in results(result))

    def test_one_task_is_itself(self) -> None:
        given = inputs(1)
        torch.testing.assert_close(
            run("emr", given).by_task["task0"][KEY], given.finetuned["task0"][KEY]
        )


class TestResidual:
    def low_rank_models(self, rank: int) -> MergeInputs:
        """Two models whose difference to their average has this rank in every matrix."""
        given = inputs(2)
        start = given.finetuned["task0"]
        generator = torch.Generator().manual_seed(0)

        def moved(key: str, value: Tensor) -> Tensor:
            if not is_merged(key, value):
                return value
            if value.dim() < 2:
                return value + torch.rand(value.shape, generator=generator)
            rows, columns = value.shape
            left = torch.rand(rows, rank, generator=generator)
            return value + left @ torch.rand(rank, columns, generator=generator)

        other = {key: moved(key, value) for key, value in start.items()}
        return replace(given, finetuned={"task0": start, "task1": other})

    def test_models_of_that_rank_are_recovered(self) -> None:
        given = self.low_rank_models(2)
        for rank, exact in ((2, True), (1, False)):
            result = run("residual", given, rank=rank)
            for task, state in given.finetuned.items():
                for key, value in state.items():
                    if is_merged(key, value):
                        close = torch.allclose(result.by_task[task][key], value, atol=1e-5)
                        # Vectors are whole at every rank; two rows or columns are never shorter.
                        assert close or (not exact and value.dim() == 2), (rank, key)
                assert torch.allclose(result.by_task[task][KEY], state[KEY], atol=1e-5) == exact

    def test_full_rank_is_every_model_itself(self) -> None:
        given = inputs(3)
        result = run("residual", given, rank=16)
        for task, state in given.finetuned.items():
            for key, value in state.items():
                if is_merged(key, value):
                    torch.testing.assert_close(result.by_task[task][key], value)

    def test_what_is_left_out_are_the_smallest_singular_values(self) -> None:
        given = inputs(2)
        result = run("residual", given, rank=3)
        own, average = given.finetuned["task1"][KEY].double(), result.backbone[KEY].double()
        left_out = torch.linalg.svdvals(own - average)[3:].square().sum()
        error = (result.by_task["task1"][KEY].double() - own).square().sum()
        torch.testing.assert_close(error, left_out, rtol=1e-4, atol=1e-8)

    def test_backbone_is_the_average(self) -> None:
        given = inputs(3)
        expected = run("weight_average", given).backbone
        result = run("residual", given)
        assert all(torch.equal(result.backbone[key], value) for key, value in expected.items())

    @pytest.mark.parametrize(("rank", "numbers"), [(4, 29_700), (10, 53_100), (30, 121_500)])
    def test_numbers_of_a_task(self, rank: int, numbers: int) -> None:
        """Five layers of 300, as in the study that the default is from."""
        state = Backbone(BackboneConfig(kind="gcn")).state_dict()
        counted = sum(
            numbers_of(value.shape, rank) for key, value in state.items() if is_merged(key, value)
        )
        assert counted == numbers

    def test_its_record_counts_what_a_task_adds(self) -> None:
        given = inputs(2)
        record = run("residual", given, rank=2).record
        linear, tables = 3 * 2 * 32, 2 * (120 + 16) + 3 * 2 * (6 + 16) + 3 * 2 * (3 + 16) + 2 * 19
        vectors = 3 * 3 * 16
        assert record == {"rank": 2, "numbers": linear + tables + vectors}


class GraphClassifier(torch.nn.Module):
    """Backbone, mean readout, linear head: what the mergers' formulas are about, written out."""

    def __init__(self, config: BackboneConfig, num_labels: int) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.head = torch.nn.Linear(config.hidden_dim, num_labels)

    def forward(self, batch: GraphBatch) -> Tensor:
        logits: Tensor = self.head(mean_readout(self.backbone(batch), batch))
        return logits


def expected_squares(model: GraphClassifier, batch: GraphBatch) -> State:
    """E_y (d log p(y) / d theta)^2 of one molecule, over all combinations of labels."""
    parameters = dict(model.backbone.named_parameters())
    total = {key: torch.zeros_like(value) for key, value in parameters.items()}
    for labels in itertools.product((0.0, 1.0), repeat=model.head.out_features):
        likelihood = (
            torch.distributions.Bernoulli(logits=model(batch))
            .log_prob(torch.tensor([labels]))
            .sum()
        )
        gradients = torch.autograd.grad(likelihood, list(parameters.values()))
        for key, gradient in zip(parameters, gradients, strict=True):
            total[key] += likelihood.exp().detach() * gradient.square()
    return total


def classifier(given: MergeInputs, state: State, task: str) -> GraphClassifier:
    model = GraphClassifier(given.config, len(given.calibration[task].head["bias"])).eval()
    model.backbone.load_state_dict(state)
    model.head.load_state_dict(given.calibration[task].head)
    return model


class TestFisher:
    def test_batch_comes_apart_into_its_molecules(self) -> None:
        for graph, smiles in zip(single_graphs(molecules(*SMILES)), SMILES, strict=True):
            alone = molecules(smiles)
            assert all(
                torch.equal(getattr(graph, name), getattr(alone, name))
                for name in ("x", "edge_index", "edge_attr", "batch")
            )

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_exact_for_one_label(self, kind: BackboneKind) -> None:
        given = inputs(1, kind)
        state = given.finetuned["task0"]
        found = diagonal_fisher(
            given.network(state), given.calibration["task0"], given.generator("any")
        )
        model = classifier(given, state, "task0")
        expected = [
            expected_squares(model, molecules(smiles)) for smiles in (*SMILES[:2], *SMILES[5:7])
        ]
        for key, value in stack_states(expected).items():
            torch.testing.assert_close(found[key].float(), value.mean(0), rtol=1e-3, atol=1e-8)

    def test_is_unbiased_for_two_labels(self) -> None:
        given = inputs(2)
        state, single = given.finetuned["task1"], molecules("c1ccccc1C(=O)O")
        own = replace(given.calibration["task1"], batches=(single,))
        draws = {}
        for seed in range(12):  # equal signs or unequal ones, half of the draws each
            found = diagonal_fisher(given.network(state), own, torch.Generator().manual_seed(seed))[
                KEY
            ]
            draws[round(float(found.sum()), 9)] = found
        assert len(draws) == 2
        expected = expected_squares(classifier(given, state, "task1"), single)[KEY]
        torch.testing.assert_close(
            torch.stack(list(draws.values())).mean(0).float(), expected, rtol=1e-3, atol=1e-8
        )

    def test_is_the_expectation_over_classes(self) -> None:
        """sum_c p_c (d log p_c / d theta)^2, as the mean over draws of the signs."""
        given = inputs(2)
        state, single = given.finetuned["task1"], molecules("c1ccccc1C(=O)O")
        own = replace(given.calibration["task1"], batches=(single,), target="multiclass")
        draws = [
            diagonal_fisher(given.network(state), own, torch.Generator().manual_seed(seed))[KEY]
            for seed in range(12)
        ]
        distinct = {round(float(found.sum()), 9): found for found in draws}
        assert len(distinct) == 2
        model = classifier(given, state, "task1")
        expected = torch.zeros_like(state[KEY])
        for label in range(2):
            log_p = model(single).log_softmax(-1)[0, label]
            (gradient,) = torch.autograd.grad(
                log_p, [dict(model.named_parameters())[f"backbone.{KEY}"]]
            )
            expected += log_p.exp().detach() * gradient.square()
        torch.testing.assert_close(
            torch.stack(list(distinct.values())).mean(0).float(), expected, rtol=1e-3, atol=1e-8
        )

    def test_of_numbers_is_the_square_of_their_gradient(self) -> None:
        given = inputs(1)
        state, single = given.finetuned["task0"], molecules("c1ccccc1C(=O)O")
        own = replace(given.calibration["task0"], batches=(single,), target="regression")
        found = diagonal_fisher(given.network(state), own, given.generator("any"))[KEY]
        model = classifier(given, state, "task0")
        weights = [dict(model.named_parameters())[f"backbone.{KEY}"]]
        (gradient,) = torch.autograd.grad(model(single).sum(), weights)
        torch.testing.assert_close(found.float(), gradient.square(), rtol=1e-3, atol=1e-8)

    @pytest.mark.parametrize("normalise", [True, False])
    def test_who_alone_needs_a_parameter_sets_it_and_who_needs_none_does_not_matter(
        self, normalise: bool
    ) -> None:
        given = inputs(2)
        batches = {"task0": molecules("CCCl", "CCO"), "task1": molecules("CCO", "CC")}
        given = replace(
            given,
            calibration={
                task: calibration(k, 1, (batch,)) for k, (task, batch) in enumerate(batches.items())
            },
        )
        merged = run("fisher", given, normalise=normalise).backbone["x_embedding1.weight"]
        first, second = (state["x_embedding1.weight"] for state in given.finetuned.values())
        chlorine, uranium, oxygen = 16, 91, 7
        torch.testing.assert_close(merged[chlorine], first[chlorine], rtol=0.01, atol=0.01)
        torch.testing.assert_close(merged[uranium], (first[uranium] + second[uranium]) / 2)
        between = (merged[oxygen] - first[oxygen]) / (second[oxygen] - first[oxygen])
        assert bool(((between >= 0) & (between <= 1)).all())
        assert float((merged[oxygen] - (first[oxygen] + second[oxygen]) / 2).abs().max()) > 0.01

    def test_normalising_gives_a_voice_to_a_task_with_small_gradients(self) -> None:
        given = inputs(2)
        quiet = {key: 1e-3 * value for key, value in calibration(0, 1).head.items()}
        given = replace(
            given,
            calibration={
                "task0": calibration(1, 1),
                "task1": replace(given.calibration["task1"], head=quiet),
            },
        )
        loud, soft = given.finetuned.values()
        distances = {}
        for normalise in (True, False):
            result = run("fisher", given, normalise=normalise)
            carbon = [state["x_embedding1.weight"][5] for state in (result.backbone, loud, soft)]
            distances[normalise] = float(
                (carbon[0] - carbon[1]).norm() / (carbon[2] - carbon[1]).norm()
            )
            assert (
                result.record["fisher_norms"]["task0"]
                > 1000 * result.record["fisher_norms"]["task1"]
                > 0
            )
        assert distances[False] < 0.05
        assert 0.2 < distances[True] < 0.8

    def test_models_that_say_nothing_are_averaged(self) -> None:
        given = inputs(2)
        mute = {"weight": torch.zeros(1, 16), "bias": torch.zeros(1)}
        given = replace(
            given,
            calibration={task: replace(own, head=mute) for task, own in given.calibration.items()},
        )
        torch.testing.assert_close(
            run("fisher", given).backbone, run("weight_average", given).backbone
        )


def layer_inputs(given: MergeInputs, task: str) -> dict[str, Tensor]:
    """What enters each linear layer of a fine-tuned model on its calibration molecules, (atoms,
    d)."""
    seen: dict[str, list[Tensor]] = {}
    network = make_backbone(given.finetuned[task], given.config, task)

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, arguments, output: seen.setdefault(name, []).append(
            arguments[0].detach()
        )

    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(keep(name))
    for batch in given.calibration[task].batches:
        network(batch)
    return {name: torch.cat(values) for name, values in seen.items()}


def output_errors(given: MergeInputs, merged: State) -> dict[str, float]:
    """Mean squared distance of a layer's output to each model's own, by layer, without the
    biases."""
    errors: dict[str, float] = {}
    for task, state in given.finetuned.items():
        for name, x in layer_inputs(given, task).items():
            gap = x @ (merged[f"{name}.weight"] - state[f"{name}.weight"]).T
            errors[name] = errors.get(name, 0) + float(gap.square().sum(1).mean())
    return errors


class TestRegMean:
    @pytest.mark.parametrize("kind", KINDS)
    def test_copies_of_one_model_merge_to_it(self, kind: BackboneKind) -> None:
        given = inputs(3, kind)
        given = replace(given, finetuned=dict.fromkeys(given.finetuned, given.finetuned["task0"]))
        merged = run("regmean", given).backbone
        for key, value in given.finetuned["task0"].items():
            if is_merged(key, value):
                torch.testing.assert_close(merged[key], value, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_nearer_than_the_mean_in_every_layer_and_nearest_without_shrinking(
        self, kind: BackboneKind
    ) -> None:
        given = inputs(3, kind)
        batches = [(molecules(*SMILES[k::3]),) for k in range(3)]
        given = replace(
            given,
            calibration={
                task: calibration(k, 1, batches[k]) for k, task in enumerate(given.finetuned)
            },
        )
        mean = output_errors(given, run("weight_average", given).backbone)
        shrunk, exact = (
            output_errors(given, run("regmean", given, alpha=alpha).backbone)
            for alpha in (0.9, 1.0)
        )
        assert len(mean) == (6 if kind == "gin" else 3)
        for name, error in mean.items():
            assert exact[name] <= shrunk[name] * 1.0001, name
            assert shrunk[name] < 0.97 * error, name

    def test_everything_else_is_the_mean(self) -> None:
        given = inputs(3)
        merged, mean = run("regmean", given).backbone, run("weight_average", given).backbone
        linears = {f"gnns.{layer}.linear.weight" for layer in range(3)}
        for key, value in mean.items():
            if key in linears:
                assert not torch.allclose(merged[key], value, atol=1e-3)
            else:
                torch.testing.assert_close(merged[key], value)

    def test_diagonal_only_weighs_each_column_by_its_inputs(self) -> None:
        given = inputs(2)
        batches = [(molecules("CCO"),), (molecules("c1ccncc1", "CCF"),)]
        given = replace(
            given,
            calibration={
                task: calibration(k, 1, batches[k]) for k, task in enumerate(given.finetuned)
            },
        )
        squares = [
            layer_inputs(given, task)["gnns.1.linear"].square().mean(0) + 1e-6
            for task in given.finetuned
        ]
        first, second = (state[KEY] for state in given.finetuned.values())
        expected = (squares[0] * first + squares[1] * second) / (squares[0] + squares[1])
        torch.testing.assert_close(
            run("regmean", given, alpha=0).backbone[KEY], expected, rtol=1e-4, atol=1e-5
        )

    def test_gram_is_a_mean_over_all_atoms(self) -> None:
        given = inputs(1)
        x = layer_inputs(given, "task0")["gnns.2.linear"].double()
        found = input_grams(given.network(given.finetuned["task0"]), given.calibration["task0"])[
            "gnns.2.linear"
        ]
        torch.testing.assert_close(found, x.T @ x / len(x))


def mean_entropy(given: MergeInputs, state: State) -> float:
    """Over tasks, batches, molecules and labels, with the batch's statistics."""
    means = []
    for task, own in given.calibration.items():
        model = classifier(given, state, task).train()
        means.append(
            torch.stack(
                [
                    torch.distributions.Bernoulli(logits=model(batch)).entropy().mean()
                    for batch in own.batches
                ]
            ).mean()
        )
    return float(torch.stack(means).mean().detach())


class TestAdaMerging:
    def test_entropy_by_hand(self) -> None:
        assert float(bernoulli_entropy(torch.zeros(2, 3))) == pytest.approx(0.6931472)
        assert float(bernoulli_entropy(torch.tensor([[3.0]]).log())) == pytest.approx(0.5623351)
        assert float(bernoulli_entropy(torch.tensor([[200.0, -200.0]]))) == 0

    @pytest.mark.parametrize(
        ("kind", "granularity"), [*((kind, "layer") for kind in KINDS), ("gcn", "task")]
    )
    def test_lowers_the_entropy(self, kind: BackboneKind, granularity: str) -> None:
        given = inputs(2, kind)
        batch = molecules(*SMILES[:4], *SMILES[5:7])
        given = replace(
            given,
            calibration={
                task: replace(own, batches=(batch,)) for task, own in given.calibration.items()
            },
        )
        result = run("adamerging", given, granularity=granularity, steps=10, learning_rate=0.02)
        assert (
            mean_entropy(given, result.backbone)
            < mean_entropy(given, run("task_arithmetic", given, scaling=0.3).backbone) - 0.005
        )

    def test_lowers_the_entropy_of_classes(self) -> None:
        given = inputs(2)
        batch = molecules(*SMILES[:4], *SMILES[5:7])
        seen = {
            task: replace(own, batches=(batch,), target="multiclass")
            for task, own in given.calibration.items()
        }
        result = run("adamerging", replace(given, calibration=seen), steps=10, learning_rate=0.02)
        assert result.record["entropy_after"] < result.record["entropy_before"] - 1e-3

    def test_entropy_of_classes_by_hand(self) -> None:
        logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [80.0, 0.0, 0.0, 0.0]])
        assert float(categorical_entropy(logits)) == pytest.approx(math.log(4) / 2)

    def test_refuses_numbers(self) -> None:
        given = inputs(2)
        own = replace(given.calibration["task1"], target="regression")
        given = replace(given, calibration=given.calibration | {"task1": own})
        with pytest.raises(
            InvalidInputError, match="got task1, a regression, expected tasks whose"
        ):
            run("adamerging", given)

    def test_says_the_entropy_before_and_after(self) -> None:
        given = inputs(3)
        result = run("adamerging", given)
        start = run("task_arithmetic", given, scaling=0.3).backbone
        assert result.record["entropy_before"] == pytest.approx(
            mean_entropy(given, start), abs=1e-4
        )
        assert result.record["entropy_after"] == pytest.approx(
            mean_entropy(given, result.backbone), abs=1e-4
        )

    def test_coefficients_are_of_tasks_or_of_parameters_too(self) -> None:
        given = inputs(2)
        learned = {
            granularity: run(
                "adamerging", given, granularity=granularity, steps=5, learning_rate=0.05
            )
            for granularity in ("task", "layer")
        }

        def combined(result: MergeResult) -> Tensor:
            deltas = [
                result.record["coefficients"][task] * vector.delta[KEY]
                for task, vector in given.task_vectors().items()
            ]
            return given.pretrained[KEY] + deltas[0] + deltas[1]

        torch.testing.assert_close(combined(learned["task"]), learned["task"].backbone[KEY])
        assert not torch.allclose(
            combined(learned["layer"]), learned["layer"].backbone[KEY], atol=1e-3
        )

    def test_coefficients_stay_between_zero_and_one(self) -> None:
        found = run("adamerging", inputs(3), granularity="task", learning_rate=5.0).record[
            "coefficients"
        ]
        assert found.keys() == {"task0", "task1", "task2"}
        assert set(found.values()) <= {0.0, 1.0}
