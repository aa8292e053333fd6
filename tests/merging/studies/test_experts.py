"""Expert merging: routing, merging, KDEM and PPEM, the domains, and the page that reports them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging.data.encoders import atom_features, svd_features, unit_mean_square
from merging.data.split import Split
from merging.studies.experts.config import (
    EXPERTS_CONFIG_FOLDER,
    ExpertsConfig,
    VariantConfig,
    load_experts_config,
)
from merging.studies.experts.domains import Domain, graphs_of, load_domain, pieces
from merging.studies.experts.model import ExpertBank, competence, edge_loss, merge_experts, route
from merging.studies.experts.probe import probe
from merging.studies.experts.study import run_study
from merging.studies.experts.summary import expert_tables
from merging.studies.experts.training import distillation, pull_together, train_bank
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
from models.errors import CheckpointError, ConfigError, InvalidInputError
from models.networks.pyg import GraphNetwork, GraphNetworkConfig
from tests.conftest import assert_law

ROOT = Path(__file__).parents[3]
NETWORK = GraphNetworkConfig(kind="pyg_gcn", in_dim=5, num_layers=2, hidden_dim=8)


def ring(nodes: int, seed: int, chords: int = 2) -> FeatureGraph:
    """A ring with some chords and random features."""
    generator = torch.Generator().manual_seed(seed)
    around = torch.arange(nodes)
    pairs = {(i, (i + 1) % nodes) for i in around.tolist()} | {
        (i, (i + 2) % nodes) for i in range(chords)
    }
    edges = (
        torch.tensor(
            sorted({pair for i, j in pairs if i != j for pair in ((i, j), (j, i))}),
            dtype=torch.int64,
        )
        .reshape(-1, 2)
        .T
    )
    return FeatureGraph(torch.randn((nodes, 5), generator=generator), edges).validate()


def domain(name: str, seed: int) -> Domain:
    """Thirty graphs with a label that their features decide."""
    graphs = tuple(ring(4 + k % 5, 100 * seed + k) for k in range(30))
    labels = torch.tensor([[float(graph.x[:, 0].mean() > 0)] for graph in graphs])
    split = Split(torch.arange(18), torch.arange(18, 24), torch.arange(24, 30))
    return Domain(name, graphs[:18], collate_features(graphs), labels, split)


def config(**changes: object) -> ExpertsConfig:
    values = {
        "setting": "pico",
        "description": "made in a test",
        "domains": ["bace", "bbbp", "sider", "clintox"],
        "network": NETWORK,
        "top_k": 2,
        "training": {"epochs": 2, "steps_per_epoch": 3, "learning_rate": 0.01, "batch_nodes": 24},
        "variants": {"none": {}},
    }
    return ExpertsConfig.model_validate(values | changes)


def domains() -> list[Domain]:
    return [domain(name, seed) for seed, name in enumerate(config().domains)]


def random_bank(network: GraphNetworkConfig = NETWORK, count: int = 4) -> ExpertBank:
    bank = ExpertBank(network, [f"expert{k}" for k in range(count)], 0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in bank.parameters():
            value.add_(0.5 * torch.randn(value.shape, generator=generator))
    return bank.requires_grad_(False)


def batch() -> GraphBatch:
    return collate_features([ring(6, 1), ring(9, 2), ring(4, 3)])


@pytest.mark.parametrize("k", [1, 2, 4])
def test_alpha_sums_to_one_and_is_zero_outside_the_top_k(k: int) -> None:
    psi = torch.tensor([-2.0, -0.5, -1.0, -0.5])
    alpha = route(psi, k)
    assert alpha.sum().item() == pytest.approx(1)
    assert (alpha > 0).sum() == k
    assert alpha[alpha > 0].min() > 0
    assert set(alpha.nonzero().flatten().tolist()) == set([1, 3, 2, 0][:k])
    torch.testing.assert_close(route(psi - 100, k), alpha)


@pytest.mark.parametrize(("psi", "k"), [([0.0, 1.0], 3), ([0.0, 1.0], 0), ([0.0, float("nan")], 1)])
def test_route_refuses(psi: list[float], k: int) -> None:
    with pytest.raises(InvalidInputError, match="expected k from 1 to 2 and finite"):
        route(torch.tensor(psi), k)


def test_one_expert_alone_is_top1_ensemble_and_merged() -> None:
    bank, graphs = random_bank(), batch()
    psi = bank.competence(graphs).mean(1)
    alpha = route(psi, 1)
    alone = bank.experts[int(psi.argmax())](graphs)
    assert torch.equal(bank.merged(alpha, graphs), alone)
    assert torch.equal(bank.ensemble(alpha, graphs), alone)


def test_identical_experts_merge_into_themselves() -> None:
    bank, graphs = ExpertBank(NETWORK, ["a", "b", "c"], 3).requires_grad_(False), batch()
    alpha = torch.tensor([0.2, 0.5, 0.3])
    torch.testing.assert_close(bank.merged(alpha, graphs), bank.ensemble(alpha, graphs))
    assert float(distillation(bank, graphs, 2)) < 1e-12


def test_linear_experts_merge_exactly_and_others_do_not() -> None:
    # no relu follows the last layer
    linear, graphs = random_bank(NETWORK.model_copy(update={"num_layers": 1})), batch()
    alpha = torch.tensor([0.4, 0.0, 0.35, 0.25])
    torch.testing.assert_close(linear.merged(alpha, graphs), linear.ensemble(alpha, graphs))
    deep = random_bank()
    assert (deep.merged(alpha, graphs) - deep.ensemble(alpha, graphs)).abs().max() > 0.01


def test_merging_is_the_weighted_sum_and_refuses_what_does_not_fit() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0])},
        {"w": torch.tensor([3.0, 5.0])},
        {"w": torch.tensor([float("nan"), 0.0])},
    ]
    assert torch.equal(
        merge_experts(states, torch.tensor([0.25, 0.75, 0.0]))["w"], torch.tensor([2.5, 4.25])
    )
    with pytest.raises(CheckpointError, match="names or shapes"):
        merge_experts([states[0], {"w": torch.ones(3)}], torch.tensor([0.5, 0.5]))
    for alpha in (torch.tensor([1.0]), torch.zeros(3)):
        with pytest.raises(InvalidInputError, match="alpha"):
            merge_experts(states, alpha)


def test_competence_is_of_the_graph_alone() -> None:
    expert = random_bank().experts[0].double()
    graphs = [replace(graph, x=graph.x.double()) for graph in (ring(6, 1), ring(17, 2), ring(4, 3))]
    alone = torch.cat([competence(expert, collate_features([graph])) for graph in graphs])
    torch.manual_seed(5)
    together = competence(expert, collate_features(graphs[::-1])).flip(0)
    assert_law(together, alone, 1e-12)
    order = torch.randperm(17)
    turned = FeatureGraph(graphs[1].x[order], order.argsort()[graphs[1].edge_index])
    assert_law(competence(expert, collate_features([turned])), alone[1:2], 1e-12)


def test_edge_loss_is_the_cross_entropy_written_out() -> None:
    graph = ring(7, 4)
    h = torch.randn((7, 3), generator=torch.Generator().manual_seed(0))
    unit = h / h.norm(dim=1, keepdim=True)
    slow = []
    for i, j in graph.edge_index.T.tolist():
        others = [k for k in range(7) if k != i]
        scores = torch.stack([unit[i] @ unit[k] / 0.2 for k in others])
        slow.append(-scores.log_softmax(0)[others.index(j)])
    torch.testing.assert_close(
        edge_loss(h, collate_features([graph])), torch.stack(slow).mean()[None]
    )


def test_a_graph_without_edges_counts_nothing_and_has_a_gradient() -> None:
    single = FeatureGraph(torch.ones(1, 5), torch.empty((2, 0), dtype=torch.int64))
    graphs = collate_features([single, ring(5, 1)])
    h = torch.randn((6, 4), requires_grad=True)
    loss = edge_loss(h, graphs)
    loss.sum().backward()
    assert loss[0] == 0
    assert loss[1] > 0
    assert h.grad is not None
    assert bool(h.grad.isfinite().all())


def weights(bank: ExpertBank) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in bank.state_dict().items()}


def train(
    tmp_path: Path,
    name: str,
    variant: VariantConfig,
    chosen: list[Domain] | None = None,
    **training: object,
) -> dict[str, Tensor]:
    settings = config(training=config().training.model_copy(update=training).model_dump())
    return weights(train_bank(chosen or domains(), settings, variant, 1, tmp_path / f"{name}.pt"))


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [key for key in one if not torch.equal(one[key], other[key])]


def test_training_lowers_the_loss_and_experts_become_different(tmp_path: Path) -> None:
    trained = train(tmp_path, "long", VariantConfig(), epochs=8, steps_per_epoch=10)
    history = torch.load(tmp_path / "long.pt", weights_only=True)["history"]
    assert history[-1] < history[0] - 0.05
    assert not torch.equal(
        trained["experts.0.gnns.0.lin.weight"], trained["experts.1.gnns.0.lin.weight"]
    )


def test_kdem_with_gamma_0_and_ppem_with_beta_1_change_nothing(tmp_path: Path) -> None:
    plain = train(tmp_path, "plain", VariantConfig())
    assert not differing(
        plain, train(tmp_path, "zero", VariantConfig(gamma=0, distil_every=1, beta=1, pull_every=1))
    )
    assert differing(plain, train(tmp_path, "kdem", VariantConfig(gamma=1, distil_every=1)))
    assert differing(plain, train(tmp_path, "ppem", VariantConfig(beta=0.9, pull_every=1)))
    bank = random_bank()
    before = weights(bank)
    pull_together(bank, batch(), 3, 1.0)
    assert not differing(before, weights(bank))


def test_ppem_pulls_the_top_k_to_their_mean_and_no_other() -> None:
    bank, graphs = random_bank(), batch()
    alpha = route(bank.competence(graphs).mean(1), 2)
    merged, before = (
        merge_experts(bank.states(), alpha),
        [{key: value.clone() for key, value in state.items()} for state in bank.states()],
    )
    pull_together(bank, graphs, 2, 0.75)
    for i, state in enumerate(bank.states()):
        beta = 0.75 if alpha[i] > 0 else 1.0
        for key, value in state.items():
            torch.testing.assert_close(value, beta * before[i][key] + (1 - beta) * merged[key])


def test_kdem_brings_the_merged_output_to_the_ensembles() -> None:
    bank, graphs = random_bank().requires_grad_(True), batch()
    optimizer = torch.optim.Adam(bank.parameters(), lr=0.01)
    first = distillation(bank, graphs, 4).item()
    for _ in range(60):
        optimizer.zero_grad()
        distillation(bank, graphs, 4).backward()
        optimizer.step()
    assert distillation(bank, graphs, 4).item() < first / 3


def test_untied_experts_do_not_depend_on_each_other(tmp_path: Path) -> None:
    every, some = (
        train(tmp_path, "all", VariantConfig()),
        train(tmp_path, "some", VariantConfig(), domains()[1:]),
    )
    assert all(
        torch.equal(value, every[f"experts.{int(key[8]) + 1}{key[9:]}"])
        for key, value in some.items()
    )


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    variant = VariantConfig(gamma=0.5, distil_every=2, beta=0.9, pull_every=3)
    whole = train(tmp_path, "whole", variant, epochs=4)
    train(tmp_path, "halves", variant, epochs=2)
    assert not differing(whole, train(tmp_path, "halves", variant, epochs=4))


def test_without_leaves_one_expert_out() -> None:
    bank, graphs = random_bank(), batch()
    others = bank.without("expert1")
    assert others.names == ("expert0", "expert2", "expert3")
    assert torch.equal(others.competence(graphs), bank.competence(graphs)[[0, 2, 3]])


def test_pieces_keep_every_node_once_and_only_edges_inside() -> None:
    whole = ring(50, 1, chords=10)
    parts = pieces(whole, 16)
    assert max(part.num_nodes for part in parts) <= 16
    rows = torch.cat([part.x for part in parts])
    assert torch.equal(rows[rows[:, 0].argsort()], whole.x[whole.x[:, 0].argsort()])
    edges = {
        (tuple(whole.x[i].tolist()), tuple(whole.x[j].tolist()))
        for i, j in whole.edge_index.T.tolist()
    }
    kept = [
        (tuple(part.x[i].tolist()), tuple(part.x[j].tolist()))
        for part in parts
        for i, j in part.edge_index.T.tolist()
    ]
    assert set(kept) <= edges
    assert len(set(kept)) == len(kept) > len(edges) / 2
    assert len(pieces(whole, 50)) == 1
    assert pieces(whole, 50)[0].edge_index.shape == whole.edge_index.shape


def test_graphs_of_undoes_collating() -> None:
    graphs = [
        ring(6, 1),
        FeatureGraph(torch.ones(1, 5), torch.empty((2, 0), dtype=torch.int64)),
        ring(4, 3),
    ]
    for got, expected in zip(graphs_of(collate_features(graphs)), graphs, strict=True):
        assert torch.equal(got.x, expected.x)
        assert torch.equal(got.edge_index, expected.edge_index)


def test_features_are_brought_to_one_width_and_loudness() -> None:
    x = torch.randn((40, 12), generator=torch.Generator().manual_seed(0)).relu()
    narrow = svd_features(x, 11)
    assert narrow.shape == (40, 11)
    left, values, _ = torch.linalg.svd(x.double())
    torch.testing.assert_close(
        (narrow @ narrow.T).double(),
        (left[:, :11] * values[:11]) @ left[:, :11].T,
        atol=1e-2,
        rtol=1e-2,
    )
    assert float(unit_mean_square(3 * x).square().mean()) == pytest.approx(1)
    atoms = torch.tensor([[5, 0], [5, 1], [6, 0], [5, 0]])
    mapped = atom_features(atoms, 64)
    assert torch.equal(mapped[0], mapped[3])
    assert all(not torch.allclose(mapped[0], mapped[k]) for k in (1, 2))
    with pytest.raises(InvalidInputError, match="expected more than the width"):
        svd_features(x, 12)
    with pytest.raises(InvalidInputError, match="at most 123"):
        atom_features(atoms, 124)


def test_probe_reads_what_the_encoder_says() -> None:
    made = domain("bace", 1)
    assert probe(made, lambda graphs: graphs.x).test > 0.9
    assert probe(made, lambda graphs: torch.zeros_like(graphs.x)).test == 0.5


def test_real_domains_have_one_width(shared: Path, tmp_path: Path) -> None:
    settings = load_experts_config(Path("six_domains.yaml"))
    cora = load_domain("cora", settings, shared / "data", tmp_path)
    assert cora.evaluated.x.shape == (2708, 64)
    assert sum(graph.num_nodes for graph in cora.graphs) == 2708
    inside = sum(graph.edge_index.shape[1] for graph in cora.graphs)
    assert inside / cora.evaluated.edge_index.shape[1] == pytest.approx(0.676, abs=0.001)
    assert cora.has_node_labels


def test_study_of_pico_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dict(zip(config().domains, domains(), strict=True))
    monkeypatch.setattr("merging.studies.experts.study.load_domain", lambda name, *_: made[name])
    settings = config(variants={"none": {}, "ppem": {"beta": 0.5, "pull_every": 1}})
    content = run_study(settings, tmp_path, tmp_path, [3], tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == content
    again = run_study(settings, tmp_path, tmp_path, [3], tmp_path / "again.json")
    assert again == content  # every piece is found again, times included
    rows = content["left_out"]["none"]["rows"]
    assert len(rows["first"]["average"]["values"]) == 1
    own = content["measured"]["none"]["3"]["bace"]["experts"]["bace"]["test"]
    assert rows["own"]["by_domain"]["bace"]["values"][0] == own
    assert "bace" not in content["measured"]["none"]["3"]["bace"]["left_out"]["ranked"]
    assert "| first by competence (top-1) |" in expert_tables(content)


def test_configurations_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert [
        load_experts_config(path).top_k for path in sorted(EXPERTS_CONFIG_FOLDER.glob("*.yaml"))
    ] == [3]
    file = tmp_path / "bad.yaml"
    for line, message in (
        ("domains: [cora, cora, bace, sider]", "expected each once"),
        ("top_k: 6", "less than the 6 domains"),
    ):
        file.write_text(f"extends: {EXPERTS_CONFIG_FOLDER / 'six_domains.yaml'}\n{line}\n")
        with pytest.raises(ConfigError, match=message):
            load_experts_config(file)


def test_the_page_holds_the_measured_tables() -> None:
    content = json.loads((ROOT / "results/neighbours/expert-merging.json").read_text())
    assert expert_tables(content) in (ROOT / "docs/expert-merging.md").read_text()


def test_an_expert_is_a_graph_network() -> None:
    assert isinstance(random_bank().experts[0], GraphNetwork)
