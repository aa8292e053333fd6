"""Validation outputs of a network whose teachers have seen the validation molecules."""

from pathlib import Path

import torch

from merging.run.models import finetuned_model
from merging.run.one_pass import one_pass_stream
from merging.run.run import Run
from merging.run.scores import unified_forward
from merging.run.validation import judged_by, unseen_outputs
from tests.merging.conftest import molecules, write_csv
from tests.merging.run.test_one_pass import with_section


def by_seed(run: Run, folder: Path) -> Run:
    """The task `nitrogen` with validation molecules of seeds 0 and 1."""
    kinds = ("test", ""), ("train", "0"), ("train", "1"), ("train", ""), ("train", "")
    cells = [
        (text, str(int("N" in text)), *kinds[(k + k // 10) % 5])
        for k, text in enumerate(molecules())
    ]
    write_csv(folder / "data/seeds.csv", "smiles", ("y", "split", "seeds"), cells)
    columns = {"split_column": "split", "validation_seeds_column": "seeds"}
    datasets = {"nitrogen": {"file": "seeds.csv", "label_columns": ["y"], **columns}}
    changed = type(run.config).model_validate(
        {
            **run.config.model_dump(),
            "tasks": ["nitrogen"],
            "datasets": datasets,
            "alignment_by_task": {},
            "compare": {},
        }
    )
    return Run(changed, 0, run.data, run.work, run.device)


def test_the_runs_own_model_stands_for_a_stream_that_other_seeds_taught(
    pico_run: Run, tmp_path: Path
) -> None:
    several = with_section(by_seed(pico_run, tmp_path), teachers={"seeds": [0, 1]})
    alone = several.with_changes(one_pass={"teachers": {"seeds": []}})
    data = several.dataset("nitrogen")
    batch = data.graphs.select(data.split.valid)
    own = one_pass_stream(several)(batch).outputs["nitrogen"]
    assert judged_by(alone, "nitrogen") == ()
    assert unseen_outputs(alone, "nitrogen", own) is own
    (stage,) = judged_by(several, "nitrogen")
    assert stage.name == "finetuned/nitrogen"
    expected = unified_forward(several, finetuned_model(several, "nitrogen"), "nitrogen")(batch)
    found = unseen_outputs(several, "nitrogen", own)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, own)


def test_a_split_that_does_not_depend_on_the_seed_needs_no_other_model(pico_run: Run) -> None:
    run = with_section(pico_run, teachers={"seeds": [0, 1]})
    own = torch.zeros(3, 1)
    assert judged_by(run, "nitrogen") == ()
    assert unseen_outputs(run, "nitrogen", own) is own
