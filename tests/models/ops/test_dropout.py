import pytest
import torch

from models.ops.dropout import fast_dropout


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_drops_the_share_and_keeps_the_mean(rate: float) -> None:
    """Among 200,000 values six standard deviations of the share are below 0.007."""
    torch.manual_seed(0)
    dropped = fast_dropout(torch.ones(400, 500), rate)
    rounded = round(rate * 256) / 256
    share = float((dropped == 0).double().mean())
    assert abs(share - rounded) < 0.007
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rounded)))


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 11), (2, 3, 5)])
def test_any_shape_is_a_mask_times_a_scale(shape: tuple[int, ...]) -> None:
    """Also where the number of values is no multiple of the eight bytes of a random word."""
    torch.manual_seed(1)
    h = torch.rand(shape, dtype=torch.float64) + 1
    dropped = fast_dropout(h, 0.5)
    assert dropped.shape == h.shape
    assert dropped.dtype == h.dtype
    assert bool(((dropped == 0) | (dropped == 2 * h)).all())


def test_gradient_passes_what_was_kept() -> None:
    torch.manual_seed(2)
    h = (torch.rand(50, 9) + 1).requires_grad_()
    dropped = fast_dropout(h, 0.25)
    (gradient,) = torch.autograd.grad(dropped.sum(), h)
    torch.testing.assert_close(gradient, dropped.detach() / h.detach())
    assert 0 < int((gradient == 0).sum()) < h.numel()


def test_rate_of_zero_changes_nothing() -> None:
    h = torch.randn(40, 3)
    assert torch.equal(fast_dropout(h, 0.0), h)


def test_calls_differ_and_a_seed_repeats_them() -> None:
    h = torch.ones(1000)
    torch.manual_seed(3)
    first, second = fast_dropout(h, 0.5), fast_dropout(h, 0.5)
    torch.manual_seed(3)
    assert torch.equal(fast_dropout(h, 0.5), first)
    assert not torch.equal(first, second)
