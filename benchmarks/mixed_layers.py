"""Scores of `moe` by the number of last layers that mix, the others using their own adapters, on
validation and on test.

    python -m benchmarks.mixed_layers --seed 0

It stands on the results of `gmerging compare` (work folder), and writes
`results/<setting>/mixed_layers-seed<N>.json`.
"""

import torch
from torch import Tensor

from benchmarks.common import parser, run_of, store
from merging.run.models import unified_model
from merging.targets.metrics import compute_outputs, roc_auc
from models.compiled.model import CompiledModel
from models.data.batch import GraphBatch
from models.experts.router import RouterConfig
from models.experts.unified import DEFAULT_ROUTING, Routing

_CASES: dict[str, dict[str, float | int | None]] = {
    "own": {},
    "all": {"mixed_layers": None},
    "3": {"mixed_layers": 3},
    "2": {"mixed_layers": 2},
    "1": {"mixed_layers": 1},
    "1, temperature 0.03": {"mixed_layers": 1, "temperature": 0.03},
    "1, temperature 0.3": {"mixed_layers": 1, "temperature": 0.3},
    "0": {"mixed_layers": 0},
    "0, graph temperature 0.01": {"mixed_layers": 0, "graph_temperature": 0.01},
    "0, graph temperature 0.1": {"mixed_layers": 0, "graph_temperature": 0.1},
}


def main() -> None:
    """Score the requested cases and write."""
    options = parser(__doc__)
    options.add_argument("cases", nargs="*", help=f"of {list(_CASES)}; all if none is named")
    arguments = options.parse_args()
    run = run_of(arguments)
    model = unified_model(run)
    for name in arguments.cases or _CASES:
        model.router = RouterConfig(**{**run.config.router.model_dump(), **_CASES[name]})
        compiled = CompiledModel(model)
        scores: dict[str, dict[str, float]] = {"valid": {}, "test": {}}
        for task in run.tasks:
            dataset, routing = run.dataset(task), DEFAULT_ROUTING if name == "own" else "moe"

            def logits(batch: GraphBatch, task: str = task, routing: Routing = routing) -> Tensor:
                return compiled(batch, [task], routing).logits[task]  # noqa: B023

            for subset, rows in (("valid", dataset.split.valid), ("test", dataset.split.test)):
                outputs = compute_outputs(logits, dataset.graphs, rows, torch.device("cpu"), 512)
                scores[subset][task] = round(roc_auc(dataset.labels[rows], outputs).mean, 5)
        for by_task in scores.values():
            by_task["average"] = round(sum(by_task.values()) / len(by_task), 5)
        print(name, scores["valid"]["average"], scores["test"]["average"], flush=True)
        store(run, "mixed_layers", name, scores)


if __name__ == "__main__":
    main()
