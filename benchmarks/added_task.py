"""What does a task reach that is added to a finished backbone? For each: the others are merged without it, and its adapters trained on that.

    python -m benchmarks.added_task bace bbbp clintox sider tox21 --seed 0

Writes `results/<setting>/added_task-seed<N>.json`: test ROC-AUC of the fine-tuned model, of its head on the bare backbone, with the adapters, and the
share of the gain that the adapters reach.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from merging.config import RunConfig, load_config
from merging.extension import gain, new_adapters
from merging.files import read_json, write_json
from merging.pipeline import adapters_from, expert, merge_key, merged_backbone
from merging.run import Run


def without(config: RunConfig, task: str) -> RunConfig:
    """The same configuration with one task less."""
    values = config.model_dump()
    values["tasks"] = [each for each in config.tasks if each != task]
    for section in ("finetune_by_task", "alignment_by_task"):
        values[section].pop(task, None)
    return RunConfig.model_validate(values)


def main() -> None:
    """Add each task asked for; results of others that are in the file stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--config", type=Path, default=Path("gcn_supervised_contextpred.yaml"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("work"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(load_config(arguments.config), arguments.seed, arguments.data, arguments.work, torch.device("cpu"))
    path = Path("results") / run.config.setting / f"added_task-seed{run.seed}.json"
    for task in arguments.tasks:
        others = replace(run, config=without(run.config, task))
        backbone = merged_backbone(others)
        adapters = adapters_from(run, new_adapters(run, backbone, merge_key(others), task).tensors)
        found = gain(run, backbone, task, expert(run, task, adapters))
        print(task, found, flush=True)
        write_json(path, {**(read_json(path) or {}), task: found})


if __name__ == "__main__":
    main()
