"""What tasks add to a shared D-MPNN, and means of ensembles."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from models.data.batch import GraphBatch, split_by_edges
from models.experts import dmpnn
from models.experts.dmpnn import DmpnnExpert, DmpnnModel, Residual, SiteAdapters
from models.networks.dmpnn import DmpnnConfig, DmpnnHead, MessagePassing, MessagePassingShape
from models.task import TaskInfo, answers

ATOM, BOND, WIDTH = 5, 3, 8
REGRESSION = TaskInfo(labels=("logS",), target="regression")
TOXIC = TaskInfo(labels=("liver", "heart"))
CLASSES = TaskInfo(labels=("low", "mid", "high"), target="multiclass")


def batch() -> GraphBatch:
    torch.manual_seed(0)
    ends = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
    bonds = torch.rand(3, BOND).repeat_interleave(2, 0)
    return GraphBatch(torch.rand(6, ATOM), ends, bonds, torch.tensor([0, 0, 0, 1, 1, 2]), 3)


def config(**heads: DmpnnHead) -> DmpnnConfig:
    return DmpnnConfig(atom_dim=ATOM, bond_dim=BOND, hidden_dim=WIDTH, bias=True, heads=heads)


def expert(shape: DmpnnConfig, task: str, info: TaskInfo, rank: int = 2) -> DmpnnExpert:
    torch.manual_seed(5)
    made = DmpnnExpert(shape, shape.heads[task], rank, info)
    if made.correction is not None:
        for value in made.correction.parameters():
            nn.init.normal_(value, std=0.3)
    return made.requires_grad_(False).eval()


def shared(shape: DmpnnConfig) -> MessagePassing:
    torch.manual_seed(4)
    return MessagePassing(shape, ATOM, BOND).requires_grad_(False).eval()


class Counting(MessagePassing):
    """Counts its passes."""

    passes = 0

    def forward(self, batch: GraphBatch, correct: Any = None) -> Tensor:
        self.passes += 1
        return super().forward(batch, correct)


def test_a_residual_is_added_to_the_weights() -> None:
    shape = config(a=DmpnnHead(hidden=(4,), correction="residual"))
    network, own = shared(shape), expert(shape, "a", REGRESSION)
    added = cast(Residual, own.correction)
    changed = shared(shape)
    state = {name: v + added.difference(name) for name, v in network.state_dict().items()}
    changed.load_state_dict(state)
    assert not torch.equal(changed(batch()), network(batch()))
    (found,) = DmpnnModel(network, {"a": own})(batch(), [0])
    torch.testing.assert_close(found, own.networks[0](changed(batch())))


def test_a_residual_holds_products_where_they_are_smaller() -> None:
    shape = config(a=DmpnnHead(correction="residual"))
    tensors = DmpnnExpert(shape, shape.heads["a"], 2, REGRESSION).state_dict()
    sizes = {k.split("tensors.")[1]: tuple(v.shape) for k, v in tensors.items() if "tensors" in k}
    assert sizes == {
        "W_i/weight/left": (8, 2),
        "W_i/weight/right": (2, 8),
        "W_i/bias": (8,),
        "W_h/weight/left": (8, 2),
        "W_h/weight/right": (2, 8),
        "W_h/bias": (8,),
        "W_o/weight/left": (8, 2),
        "W_o/weight/right": (2, 13),
        "W_o/bias": (8,),
    }
    whole = DmpnnExpert(shape, shape.heads["a"], 4, REGRESSION).state_dict()
    assert whole["correction.tensors.W_h/weight"].shape == (8, 8)
    assert whole["correction.tensors.W_o/weight/left"].shape == (8, 4)


def test_adapters_subtract_at_every_site_or_from_the_molecules_vector_alone() -> None:
    shape = config(a=DmpnnHead(correction="adapters"), b=DmpnnHead(correction="graph_adapter"))
    network = shared(shape)
    experts = {"a": expert(shape, "a", REGRESSION), "b": expert(shape, "b", TOXIC)}
    at_all, at_last = (cast(SiteAdapters, own.correction) for own in experts.values())
    assert (len(at_all.sites), len(at_last.sites)) == (network.num_sites, 1)
    found = DmpnnModel(network, experts)(batch(), [0, 1])
    vectors = network(batch(), lambda site, h: h - at_all.sites[site](h))
    torch.testing.assert_close(found[0], experts["a"].networks[0](vectors))
    vectors = network(batch())
    vectors = vectors - at_last.sites[0](vectors)
    torch.testing.assert_close(found[1], experts["b"].networks[0](vectors))


@pytest.mark.parametrize("correction", ["residual", "adapters", "graph_adapter"])
def test_a_correction_is_active_unless_it_is_zero(correction: str) -> None:
    shape = config(a=DmpnnHead.model_validate({"correction": correction}))
    made = DmpnnExpert(shape, shape.heads["a"], 2, REGRESSION).correction
    assert made is not None
    assert not made.is_active
    for value in made.parameters():
        nn.init.ones_(value)
    assert made.is_active


def test_tasks_that_share_the_network_share_its_pass() -> None:
    heads = {name: DmpnnHead(correction="graph_adapter", members=2) for name in "ab"}
    shape = config(**heads, c=DmpnnHead())
    network = Counting(shape, ATOM, BOND)
    experts = {name: expert(shape, name, TOXIC) for name in "abc"}
    DmpnnModel(network, experts)(batch(), [0, 1, 2])
    assert network.passes == 1


def test_a_task_with_its_own_networks_needs_no_shared_one() -> None:
    own = MessagePassingShape(hidden_dim=6, depth=2, aggregation="sum")
    shape = config(a=DmpnnHead(hidden=(4,), members=2, own=own, batch_norm=True))
    assert not shape.is_shared
    made = expert(shape, "a", REGRESSION, rank=0)
    first, second = made.networks
    assert first.network is not None
    assert second.network is not None
    (found,) = DmpnnModel(nn.Module(), {"a": made})(batch(), [0])
    both = first(first.network(batch())), second(second.network(batch()))
    torch.testing.assert_close(found, (both[0] + both[1]) / 2)
    h = first.network(batch())
    norm = cast(nn.BatchNorm1d, first.batch_norm)
    norm.running_mean += 1
    torch.testing.assert_close(first(h), first.layers[1](first.layers[0](norm(h)).relu()))


@pytest.mark.parametrize("info", [TOXIC, CLASSES, REGRESSION], ids=lambda info: info.target)
def test_the_mean_of_an_ensemble_is_that_of_its_predictions(info: TaskInfo) -> None:
    shape = config(a=DmpnnHead(members=3, hidden=(5,), activation="tanh"))
    network, own = shared(shape), expert(shape, "a", info)
    for k, member in enumerate(own.networks):
        cast(nn.Linear, member.layers[-1]).bias += 3 * k - 2
    vectors = network(batch())
    kind = info.output_kind
    expected = torch.stack([answers(m(vectors).double(), kind) for m in own.networks]).mean(0)
    (found,) = DmpnnModel(network, {"a": own})(batch(), [0])
    torch.testing.assert_close(answers(found.double(), kind), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shift", [-60.0, 60.0])
def test_the_mean_of_certain_members_keeps_its_digits(shift: float) -> None:
    shape = config(a=DmpnnHead(members=2))
    network, own = shared(shape), expert(shape, "a", TOXIC)
    for member in own.networks:
        cast(nn.Linear, member.layers[-1]).bias += shift
    (found,) = DmpnnModel(network, {"a": own})(batch(), [0])
    first, second = (member(network(batch())) for member in own.networks)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    assert bool(((found >= low - 1e-3) & (found <= high + 1e-3)).all())


def test_large_batches_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are those of the whole, in its order; a graph larger than a piece is one."""
    heads = {"a": DmpnnHead(correction="residual"), "b": DmpnnHead(members=2)}
    shape = config(**heads)
    model = DmpnnModel(shared(shape), {name: expert(shape, name, TOXIC) for name in heads})
    whole = model(batch(), [0, 1])
    for most, pieces in ((5, 2), (4, 2), (2, 2), (1, 3)):
        found = split_by_edges(batch(), most)
        assert len(found) == pieces
        assert sum(piece.num_graphs for piece in found) == 3
        assert all(piece.edge_index.shape[1] <= max(most, 4) for piece in found)
        monkeypatch.setattr(dmpnn, "CACHED_EDGES", most)
        for one, other in zip(model(batch(), [0, 1]), whole, strict=True):
            torch.testing.assert_close(one, other)
