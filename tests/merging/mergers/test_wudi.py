"""WUDI-Merging: its minimum, and the way to it."""

import torch

from merging.mergers.wudi import WudiOptions, _adam, closed_form, interference


def deltas(count: int = 3, rows: int = 4, columns: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, rows, columns, generator=generator, dtype=torch.float64)


def test_interference_by_hand() -> None:
    tasks = torch.tensor([[[3.0, 0.0]], [[0.0, 2.0]]])
    # The first task: (1 - 3, 2) . (3, 0) = -6, 36 / 9; the second: (1, 2 - 2) . (0, 2) = 0.
    assert interference(torch.tensor([[1.0, 2.0]]), tasks) == 4


def test_tasks_in_orthogonal_spaces_are_added_up() -> None:
    tasks = torch.tensor([[[3.0, 0.0]], [[0.0, 2.0]]])
    torch.testing.assert_close(closed_form(tasks), torch.tensor([[3.0, 2.0]]))


def test_no_small_step_from_the_closed_form_is_better() -> None:
    tasks = deltas()
    tau = closed_form(tasks).requires_grad_()
    interference(tau, tasks).backward()
    assert tau.grad is not None
    assert tau.grad.abs().max() < 1e-9
    assert interference(tau, tasks) < interference(tasks.sum(0), tasks)


def test_adam_goes_from_the_sum_to_the_closed_form() -> None:
    tasks = deltas()
    few = _adam(WudiOptions(steps=10, learning_rate=0.01))(tasks)
    many = _adam(WudiOptions(steps=4000, learning_rate=0.01))(tasks)
    found = [float(interference(tau, tasks)) for tau in (tasks.sum(0), few, many)]
    assert found == sorted(found, reverse=True)
    torch.testing.assert_close(many, closed_form(tasks), atol=1e-2, rtol=0)


def test_a_task_that_never_left_the_start_changes_nothing() -> None:
    tasks = deltas()
    still = torch.cat([tasks, torch.zeros(1, 4, 6, dtype=torch.float64)])
    torch.testing.assert_close(closed_form(still), closed_form(tasks))
    assert interference(tasks[0], still) == interference(tasks[0], tasks)
