"""Training of experts: KDEM, PPEM, and stopped and resumed training."""

from pathlib import Path

import torch
from torch import Tensor

from merging.studies.experts.config import VariantConfig
from merging.studies.experts.domains import Domain
from merging.studies.experts.model import ExpertBank, merge_experts, route
from merging.studies.experts.training import distillation, pull_together, train_bank
from tests.merging.studies.experts.pico import batch, config, domains, random_bank


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
