"""Both methods run on pico data, with the expected results where they are known."""

from benchmarks.teachers import WAYS, areas
from merging.run.run import Run
from merging.run.scores import evaluate, plain_forward
from merging.run.stages import teacher, trained_model


def test_the_fine_tuned_model_is_the_real_one(pico_run: Run) -> None:
    """`averaging` trains as the run does; `pull_back` starts from what the run made."""
    made = trained_model(pico_run, teacher(pico_run, "other"))
    forward = plain_forward(pico_run, "other", made.network, made.heads["other"])
    expected = areas(evaluate(pico_run, forward, "other"))
    for way in WAYS.values():
        found = way(pico_run, "other")
        assert {name: found["finetuned"][name] for name in ("valid", "test")} == expected
        assert len(found) > 3
