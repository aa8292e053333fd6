"""Settings of training: what they refuse, and the keys that results are kept by."""

import pytest
from pydantic import ValidationError

from merging.config.base import fingerprint
from merging.config.training import (
    FinetuneConfig,
    ForceTrainingConfig,
    GraphTrainingConfig,
    MultitaskConfig,
    TuningConfig,
)


def test_defaults_keep_the_keys_of_results_from_before_there_were_schedules() -> None:
    assert fingerprint(FinetuneConfig()) == "c127077660fdaad6"
    assert fingerprint(MultitaskConfig()) == "e555bd71e351faec"
    assert fingerprint(GraphTrainingConfig()) == "ac9ce6e2b23ecfa8"
    assert fingerprint(ForceTrainingConfig(epochs=3)) == "fb3687dedc25676d"
    assert fingerprint(TuningConfig(epochs=3)) == "4e7f41c97f45320a"


@pytest.mark.parametrize(
    "changes", [{"schedule": "cosine"}, {"keep": "last"}, {"loss": "smooth_l1"}]
)
def test_another_rule_has_another_key_and_comes_back(changes: dict[str, str]) -> None:
    changed = FinetuneConfig.model_validate(changes)
    assert fingerprint(changed) != fingerprint(FinetuneConfig())
    assert FinetuneConfig.model_validate(changed.model_dump()) == changed


def test_a_force_field_falls_by_default_and_may_be_constant() -> None:
    constant = ForceTrainingConfig(epochs=3, schedule="constant")
    assert constant.model_dump()["schedule"] == "constant"
    assert ForceTrainingConfig.model_validate(constant.model_dump()) == constant
    assert ForceTrainingConfig(epochs=3).schedule == "cosine"


def test_all_epochs_leave_nothing_to_patience() -> None:
    with pytest.raises(ValidationError, match="got 30 with `keep: last`, expected `patience: nul"):
        GraphTrainingConfig(keep="last")
    assert GraphTrainingConfig(keep="last", patience=None).epochs == 200


def test_a_force_field_has_a_loss_of_its_own() -> None:
    with pytest.raises(ValidationError, match="loss"):
        ForceTrainingConfig.model_validate({"epochs": 3, "loss": "smooth_l1"})
