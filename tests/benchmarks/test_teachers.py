"""Both methods run on pico data, with the expected results where they are known."""

from benchmarks.teachers import WAYS, score
from merging.run.run import Run
from merging.run.stages import finetuned
from models.classifier import GraphClassifier
from tests.conftest import pico_config


def test_the_fine_tuned_model_is_the_real_one(pico_run: Run) -> None:
    """`averaging` trains as the pipeline does; `pull_back` starts from what the pipeline made."""
    model = GraphClassifier(pico_config(), 2).eval()
    model.load_state_dict(finetuned(pico_run, "other").tensors)
    expected = score(pico_run, "other", model)
    for way in WAYS.values():
        found = way(pico_run, "other")
        assert {name: found["finetuned"][name] for name in ("valid", "test")} == expected
        assert len(found) > 3
