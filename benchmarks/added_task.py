"""Adding a task to a merged model: the other tasks are merged without it, and its adapters are
trained on that backbone.

    python -m benchmarks.added_task bace bbbp clintox sider tox21 --seed 0

Writes `results/<setting>/added_task-seed<N>.json`: test ROC-AUC of the fine-tuned model, of its
head on the backbone without adapters, and with adapters; and the share of the difference between
the first two that adapters recover.
"""

from dataclasses import replace
from typing import Any

from benchmarks.common import by_task
from merging.config.reading import only_tasks
from merging.families.molecule_config import MoleculeConfig
from merging.release.extension import adapter_gain, added_adapters
from merging.run.models import expert
from merging.run.run import Run
from merging.run.stages import merged, merged_network


def without(config: MoleculeConfig, task: str) -> MoleculeConfig:
    """Return a configuration without one of its tasks."""
    others = [name for name in config.tasks if name != task]
    values = config.model_dump() | {"tasks": others, "compare": {}}
    return MoleculeConfig.model_validate(only_tasks(values, others))


def added(run: Run, task: str) -> dict[str, Any]:
    """Train adapters of a task on the merged backbone of the other tasks; return its scores."""
    others = replace(run, config=without(run.config, task))
    backbone = merged_network(others)
    adapters = run.result(added_adapters(run, backbone, merged(others).key, task))
    return adapter_gain(run, backbone, task, expert(run, task, adapters.tensors))


if __name__ == "__main__":
    by_task(__doc__, "added_task", added)
