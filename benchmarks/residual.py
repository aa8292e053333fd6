"""Test and validation scores of `residual` without adapters, by rank, on the tasks of a setting:
the average of the fine-tuned networks, and by task a low-rank difference to it.

    python -m benchmarks.residual --seeds 0 1 2

Fine-tuned models are those of `gmerging finetune`; missing ones are trained (hours). Merging uses
no data. Writes `results/<setting>/residual.json` after every seed.
"""

from pathlib import Path
from typing import Any

from benchmarks.common import parser, run_of
from merging.data.files import read_json, write_json
from merging.mergers.registry import MergeConfig
from merging.mergers.residual import numbers_of
from merging.run.build import build
from merging.run.run import Run
from merging.run.scores import Method, finetuned_method, merger_method, recovery

RANKS = (10, 30, 54, 100)


def methods(run: Run) -> dict[str, Method]:
    """The references and the ranks, by name."""
    average = merger_method(run, MergeConfig(method="weight_average"))
    ranks = {
        f"residual, rank {rank}": merger_method(
            run, MergeConfig(method="residual", options={"rank": rank})
        )
        for rank in RANKS
    }
    return {"finetuned": finetuned_method(run), "weight_average": average, **ranks}


def measure(run: Run) -> dict[str, Any]:
    """Measure a seed: scores by method and task, and recovery on the test part."""
    rows = methods(run)
    stages = [stage for row in rows.values() for stage in row.stages]
    build(stages, run.store, description="scores")
    found: dict[str, Any] = {}
    for name, row in rows.items():
        scores = row.task_scores()
        found[name] = scores["stored"]
    best, worst = (found[name]["average"] for name in ("finetuned", "weight_average"))
    for scores in found.values():
        scores["recovery"] = recovery(scores["average"], worst, best)
    return found


def main() -> None:
    """Measure the seeds, print their averages, and write."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = options.parse_args()
    for seed in arguments.seeds:
        arguments.seed = seed
        run = run_of(arguments)
        path = Path("results") / run.config.setting / "residual.json"
        content: dict[str, Any] = read_json(path) if path.is_file() else {"seeds": {}}
        shapes = [value.shape for value in run.initial_state().values()]
        content["numbers_of_a_task"] = {
            str(rank): sum(numbers_of(shape, rank) for shape in shapes) for rank in RANKS
        }
        content["seeds"][str(seed)] = found = measure(run)
        write_json(path, content)
        for name, scores in found.items():
            print(seed, name, scores["average"], scores["recovery"], flush=True)


if __name__ == "__main__":
    main()
