"""`--part I/N`: a command makes its share of the stages; the last one writes the output."""

import re
from pathlib import Path

import pytest

from gmerging.cli.main import main, make_parser
from merging.run.build import Share
from tests.merging.conftest import run_options


def command(folder: Path, *words: str) -> int:
    return main([*words, "--config", str(folder / "pico.yaml"), *run_options(folder)])


def models(folder: Path) -> list[str]:
    files = (folder / "work/pieces/finetuned").glob("*.safetensors")
    return sorted(file.name.split("-")[0] for file in files)


def left(said: str, share: str) -> int:
    """The number of stages that a part said it has left to others."""
    found = re.search(
        rf"gmerging: part {share} is made; (\d+) stages are left to other parts", said
    )
    assert found, said
    return int(found[1])


@pytest.mark.parametrize("text", ["2/2", "1", "0/0", "-1/2", "a/b", "0/2/3", "\u0661/2", ""])
def test_a_part_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(["finetune", f"--part={text}"])
    assert caught.value.code == 2
    expected = f"got {text!a}, expected I/N with I from 0 to N - 1, such as 0/8"
    assert expected in capsys.readouterr().err


def test_commands_with_stages_take_a_part() -> None:
    for words in (["release"], ["compare"], ["ablate"], ["study", "scores"], ["train-adapters"]):
        assert make_parser().parse_args([*words, "--part", "3/8"]).part == Share(3, 8)


def test_parts_of_a_training_end_without_each_other(
    pico_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, "finetune", "--part", "1/2") == 0
    assert len(models(tmp_path)) == 1
    said = capsys.readouterr()
    assert left(said.err, "1/2") == 1
    assert "best epoch" not in said.out
    assert command(tmp_path, "finetune", "--part", "0/2") == 0
    assert models(tmp_path) == ["nitrogen", "other"]
    said = capsys.readouterr()
    assert said.out.count("best epoch") == 2
    assert "left to other parts" not in said.err
    assert command(tmp_path, "finetune", "--part", "1/2") == 0  # all is there: it says so too
    assert capsys.readouterr().out.count("best epoch") == 2


def test_a_part_makes_what_its_own_stages_stand_on(
    pico_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, "train-adapters", "--part", "0/2") == 0
    assert models(tmp_path) == ["nitrogen", "other"]
    assert len(list((tmp_path / "work/pieces/adapters").glob("*.safetensors"))) == 1
    assert left(capsys.readouterr().err, "0/2") == 1


@pytest.mark.slow
def test_a_comparison_in_parts_is_that_of_one_process(
    pico_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    assert command(tmp_path, "compare", "--results", str(results), "--part", "0/2") == 0
    assert left(capsys.readouterr().err, "0/2") > 3
    assert not results.exists()
    assert command(tmp_path, "compare", "--results", str(results), "--part", "1/2") == 0
    table = (results / "pico/table.md").read_text()
    assert command(tmp_path, "compare", "--results", str(tmp_path / "again")) == 0
    assert (tmp_path / "again/pico/table.md").read_text() == table
