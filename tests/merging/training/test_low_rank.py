import torch
from torch import Tensor, nn

from merging.training.low_rank import add_low_rank, fold_low_rank, low_rank_deltas
from models.networks.chgnet import GatheredLinear


class Pair(nn.Module):
    """A Linear, and one whose input is put together from two tables."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), GatheredLinear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        out: Tensor = self.second((h, torch.tensor([1, 0])), (h, None))
        return out


def test_adapters_change_nothing_at_first_and_fold_into_the_weights() -> None:
    torch.manual_seed(0)
    network, x = Pair(), torch.randn(2, 4)
    before, names = network(x), set(network.state_dict())
    add_low_rank(network, rank=1)
    assert [tuple(delta.up.shape) for delta in low_rank_deltas(network)] == [(3, 1), (2, 1)]
    torch.testing.assert_close(network(x), before)
    for delta in low_rank_deltas(network):
        nn.init.normal_(delta.up)
    adapted, old = network(x), network.first.parametrizations.weight.original.clone()
    assert not torch.allclose(adapted, before)
    fold_low_rank(network)
    torch.testing.assert_close(network(x), adapted)
    assert set(network.state_dict()) == names
    assert low_rank_deltas(network) == []
    assert torch.linalg.matrix_rank(network.first.weight - old, atol=1e-6) == 1


def test_a_gradient_of_a_gradient_reaches_the_adapters() -> None:
    torch.manual_seed(0)
    network, x = Pair(), torch.randn(2, 4, requires_grad=True)
    network.requires_grad_(False)
    add_low_rank(network, rank=2)
    (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    slope.pow(2).sum().backward()
    for delta in low_rank_deltas(network):
        assert delta.up.grad is not None
        assert delta.up.grad.abs().sum() > 0
    assert network.first.bias.grad is None
