"""Validation outputs of a shared stream that was taught by models of several seeds."""

from torch import Tensor

from merging.run.models import finetuned_model
from merging.run.run import Run
from merging.run.scores import predict_subset, unified_forward
from merging.run.stage import Stage
from merging.run.stages import teacher


def unseen_outputs(run: Run, task: str, own: Tensor) -> Tensor:
    """Return a network's outputs on the validation molecules for choices and temperatures: nothing
    that it learnt from has seen their labels.

    Where models of several seeds taught the shared stream and the validation molecules depend on
    the seed, the other seeds' models were trained on this run's. In place of the stream's outputs
    these are then those of the run's own fine-tuned model.

    Args:
        run: the run of the artifact.
        task: one of its tasks.
        own: (G, L), outputs of the artifact's network on the validation molecules.
    """
    if not judged_by(run, task):
        return own
    forward = unified_forward(run, finetuned_model(run, task), task)
    outputs: Tensor = predict_subset(run, forward, task, "valid")[0]
    return outputs


def judged_by(run: Run, task: str) -> tuple[Stage, ...]:
    """Return the stage of the fine-tuned model that stands for the stream in `unseen_outputs`, if
    one does."""
    settings = getattr(run.config, "one_pass", None)
    by_seed = getattr(run.config.dataset_for(task), "validation_seeds_column", None)
    if settings is None or by_seed is None:
        return ()
    others = set(settings.teachers_for(task).seeds) - {run.seed}
    return (teacher(run, task),) if others else ()
