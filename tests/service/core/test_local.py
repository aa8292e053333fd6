"""Predictions for one caller: passes of bounded cost, results in order."""

import pytest

from service.core.answer import Answer
from service.core.local import predict
from service.core.reading import ItemFailure, MolBlock
from tests.service.doubles import DummyEngine, query_of, settings_of


def test_passes_are_bounded_and_results_in_order() -> None:
    engine = DummyEngine()
    sources = ["C", "CCC", "C1", "CC", "C" * 8, "", "C", MolBlock("nothing")]
    results = predict(query_of(engine), settings_of(max_batch_cost=5), sources)
    assert [count for count, *_ in engine.passes] == [2, 1, 1, 1]
    values = [
        result.tasks["bbbp"].values[0] if isinstance(result, Answer) else result.code
        for result in results
    ]
    assert values[:2] == pytest.approx([1 / 2, 1 / 4])
    assert values[2] == "smiles_syntax"
    assert values[3:5] == pytest.approx([1 / 3, 1 / 9])
    assert values[5] == "empty_smiles"
    assert values[6] == pytest.approx(1 / 2)
    assert isinstance(results[7], ItemFailure)


def test_cost_counts_streams_and_limits_hold() -> None:
    engine = DummyEngine()
    query = query_of(engine, tasks=("bbbp", "tox21"))
    (first, second) = predict(query, settings_of(max_batch_cost=8, max_atoms=4), ["CCC", "CCCCC"])
    assert isinstance(first, Answer)
    assert isinstance(second, ItemFailure)
    assert second.code == "too_many_atoms"
    predict(query, settings_of(max_batch_cost=8), ["CC", "CC", "C"])
    assert [count for count, *_ in engine.passes] == [1, 2, 1]
    assert predict(query, settings_of(), []) == []
