from dataclasses import replace

import pytest

from benchmarks.added_task import added, without
from merging.run.run import Run
from merging.run.stages import merged


def test_the_added_task_is_not_in_what_it_is_added_to(pico_run: Run) -> None:
    found = added(pico_run, "other")
    others = replace(pico_run, config=without(pico_run.config, "other"))
    assert others.result(merged(others)).record["tasks"] == ["nitrogen"]
    gap = found["finetuned"] - found["bare"]
    assert found["share"] == (
        pytest.approx((found["with_adapters"] - found["bare"]) / gap, abs=1e-3) if gap > 0 else None
    )
