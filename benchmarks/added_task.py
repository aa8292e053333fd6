"""Results of a task that is added to a finished backbone: the other tasks are merged without it,
and its adapters are trained on the result.

    python -m benchmarks.added_task bace bbbp clintox sider tox21 --seed 0

Writes `results/<setting>/added_task-seed<N>.json`: test ROC-AUC of the fine-tuned model, of its
head on the bare backbone, with the adapters, and the share of the gain that the adapters reach.
"""

from dataclasses import replace
from typing import Any

from benchmarks.common import by_task
from merging.config.reading import only_tasks
from merging.release.extension import gain, new_adapters
from merging.run.config import RunConfig
from merging.run.run import Run
from merging.run.stages import adapters_from, expert, merge_key, merged_backbone


def without(config: RunConfig, task: str) -> RunConfig:
    """Return the configuration without one task."""
    others = [name for name in config.tasks if name != task]
    values = config.model_dump() | {"tasks": others, "compare": {}}
    return RunConfig.model_validate(only_tasks(values, others))


def added(run: Run, task: str) -> dict[str, Any]:
    """Measure a task on the backbone that the other tasks are merged into."""
    others = replace(run, config=without(run.config, task))
    backbone = merged_backbone(others)
    adapters = adapters_from(run, new_adapters(run, backbone, merge_key(others), task).tensors)
    return gain(run, backbone, task, expert(run, task, adapters))


if __name__ == "__main__":
    by_task(__doc__, "added_task", added)
