"""Explanations as cells of tables."""

import math

from service.core.answer import Answer
from service.core.explaining import NOTHING, Explained
from service.formats.explanation_columns import alert_cells, percentile_columns, percentile_table

ASKED = Explained(("drugs", "alerts"), {"bbbp": ("p_np",), "tox21": ("NR-AR",)})


def alert(name: str) -> dict[str, object]:
    return {"catalog": "BRENK", "name": name, "atoms": [0]}


def test_percentiles_have_a_column_by_label() -> None:
    assert percentile_columns(ASKED) == [
        "bbbp.p_np percentile among drugs",
        "tox21.NR-AR percentile among drugs",
    ]
    known = Answer("C", {}, explanations={"drugs": {"bbbp": {"p_np": 12.5}}})
    first, second = percentile_table([known, Answer(None, {})], ASKED).tolist()
    assert first[0] == 12.5
    assert all(map(math.isnan, [first[1], *second]))
    assert percentile_columns(NOTHING) == []
    assert percentile_table([known], NOTHING).shape == (1, 0)


def test_names_of_alerts_are_joined_each_once() -> None:
    several = {"alerts": [alert("nitro_group"), alert("nitro_group"), alert("azo_group")]}
    late = {"explanation_errors": {"alerts": {"code": "parse_timeout", "message": "too long"}}}
    answers = [Answer("C", {}, explanations=shown) for shown in (several, {"alerts": []}, late)]
    assert alert_cells(answers) == ["nitro_group; azo_group", "", "parse_timeout: too long"]
