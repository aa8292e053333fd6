"""The study of GNNMerge: its results file, its tables and its page."""

from pathlib import Path

import pytest

from merging.data.files import read_json, write_json
from merging.studies.gnnmerge import (
    RESULTS,
    ROW_TITLES,
    SETTINGS,
    all_cells,
    scores_table,
    speed_table,
    write_results,
)
from merging.studies.gnnmerge_molecules import molecules_table
from tests.pages import page

ROOT = Path(__file__).parents[3]


def fake_cells(folder: Path) -> None:
    """Two seeds of one cell, in which every row scores by its number, and joint training takes 200
    times as long as any merger."""
    for seed in (0, 1):
        scores = {
            name: {"cora-a": 0.01 * k + 0.1 * seed, "cora-b": 0.01 * k}
            for k, name in enumerate(ROW_TITLES)
        }
        seconds = {name: 2.0 if name == "joint" else 0.01 for name in ROW_TITLES}
        content = {
            "metric": {},
            "scores": {"same": scores, "different": scores},
            "seconds": {"same": seconds, "different": seconds},
        }
        write_json(folder / "cells" / f"in_domain_cora-pyg_gcn-seed{seed}.json", content)


class TestStudy:
    def test_summary_and_tables_of_cells(self, tmp_path: Path) -> None:
        fake_cells(tmp_path)
        content = write_results(tmp_path, None, tmp_path / "out.json")
        assert read_json(tmp_path / "out.json")["rows"] == content["rows"]
        row = next(
            row
            for row in content["rows"]
            if row["row"] == "joint" and row["initialisation"] == "different"
        )
        assert row["mean"] == {
            "mean": pytest.approx(0.035),
            "std": pytest.approx(0.03536, abs=1e-5),
            "values": pytest.approx([0.01, 0.06]),
        }
        assert row["tasks"]["cora-b"]["std"] == 0
        assert "| joint training | 3.5 ± 3.5 | 3.5 ± 3.5 |" in scores_table(
            content, "in_domain_cora"
        )
        assert "| GNNMerge++ | 0.0100 s, 200 x |" in speed_table(content)

    def test_cells_are_all_combinations_once(self) -> None:
        made = list(all_cells())
        assert len(set(made)) == len(made) == 5 * 4 * 3

    def test_page_holds_the_measured_tables(self) -> None:
        text, content = page("gnnmerge.md").read_text(), read_json(ROOT / RESULTS)
        measured = {row["setting"] for row in content["rows"]}
        assert {"in_domain_cora", "cross_domain", "tasks_cora"} <= measured <= SETTINGS.keys()
        for setting in measured:
            assert scores_table(content, setting) in text, setting
        assert speed_table(content) in text
        assert molecules_table(content["molecules"]) in text
