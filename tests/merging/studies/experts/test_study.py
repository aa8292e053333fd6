"""The study of merged experts: its files, its tables and its page."""

import json
from pathlib import Path

import pytest

from merging.studies.experts.config import EXPERTS_CONFIG_FOLDER, load_experts_config
from merging.studies.experts.study import run_study
from merging.studies.experts.summary import expert_tables
from models.errors import ConfigError
from tests.merging.studies.experts.pico import config, domains
from tests.pages import page

ROOT = Path(__file__).parents[4]


def test_study_of_pico_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dict(zip(config().domains, domains(), strict=True))
    monkeypatch.setattr("merging.studies.experts.study.load_domain", lambda name, *_: made[name])
    settings = config(variants={"none": {}, "ppem": {"beta": 0.5, "pull_every": 1}})
    content = run_study(settings, tmp_path, tmp_path, [3], tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == content
    again = run_study(settings, tmp_path, tmp_path, [3], tmp_path / "again.json")
    assert again == content  # every piece is found again, times included
    rows = content["left_out"]["none"]["rows"]
    assert len(rows["first"]["average"]["values"]) == 1
    own = content["measured"]["none"]["3"]["bace"]["experts"]["bace"]["test"]
    assert rows["own"]["by_domain"]["bace"]["values"][0] == own
    assert "bace" not in content["measured"]["none"]["3"]["bace"]["left_out"]["ranked"]
    assert "| first by competence (top-1) |" in expert_tables(content)


def test_configurations_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert [
        load_experts_config(path).top_k for path in sorted(EXPERTS_CONFIG_FOLDER.glob("*.yaml"))
    ] == [3]
    file = tmp_path / "bad.yaml"
    for line, message in (
        ("domains: [cora, cora, bace, sider]", "expected each once"),
        ("top_k: 6", "less than the 6 domains"),
    ):
        file.write_text(f"extends: {EXPERTS_CONFIG_FOLDER / 'six_domains.yaml'}\n{line}\n")
        with pytest.raises(ConfigError, match=message):
            load_experts_config(file)


def test_the_page_holds_the_measured_tables() -> None:
    content = json.loads((ROOT / "results/neighbours/expert-merging.json").read_text())
    assert expert_tables(content) in page("expert-merging.md").read_text()
