"""Fine-tuned networks in the layout of Hu et al. 2020, as strangers save them, imported by every
method of `gmerging import-models`: test ROC-AUC and label-free differences.

    python -m benchmarks.hu2020_models --base gcn_supervised_contextpred.pth [--tasks TASK ...]

The networks are a run's fine-tuned models (`gmerging finetune`), written with the prefix `gnn.` and
a head `graph_pred_linear`; merging sees the training molecules of all tasks, without labels. Writes
`results/own-models/hu2020.json`.
"""

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import parser, run_of
from benchmarks.measuring import machine
from merging.data.files import write_json
from merging.data.molecule_dataset import load_smiles
from merging.imports.config import make_import_config
from merging.imports.hu2020 import network_vector, read_hu2020
from merging.imports.importing import import_models
from merging.run.run import Run
from merging.run.stages import teacher, trained_model
from merging.targets.metrics import compute_outputs, roc_auc
from models.artifact import load_artifact
from models.networks.hu2020 import BackboneKind

KIND: BackboneKind = "gcn"


def write_models(run: Run, tasks: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Write the models and their training molecules; return the sources of an import by task."""
    folder.mkdir(parents=True, exist_ok=True)
    sources, molecules = {}, []
    for task in tasks:
        dataset = run.dataset(task)
        model = trained_model(run, teacher(run, task))
        state = {f"gnn.{key}": value for key, value in model.network.items()}
        head = {key: model.heads[task][key] for key in ("weight", "bias")}
        state |= {f"graph_pred_linear.{key}": value for key, value in head.items()}
        torch.save(state, folder / f"{task}.pth")
        labels = list(dataset.info.labels)
        path = str(folder / f"{task}.pth")
        sources[task] = {"path": path, "labels": labels, "target": "multilabel"}
        texts = load_smiles(dataset, run.config.dataset_for(task), run.data, run.work / "data")
        molecules += [texts[k] for k in dataset.split.train.tolist()]
    (folder / "molecules.smi").write_text("\n".join(molecules))
    return sources


def scores(run: Run, folder: Path) -> dict[str, float]:
    """Compute the test ROC-AUC of an artifact's tasks."""
    model: Any = load_artifact(folder).model
    found = {}
    for task in model.tasks:
        dataset = run.dataset(task)
        rows = dataset.split.test

        def forward(batch: Any, task: str = task) -> Any:
            return model(batch, [task]).logits[task]

        outputs = compute_outputs(forward, dataset.graphs, rows, run.device)
        found[task] = round(roc_auc(dataset.labels[rows], outputs).mean, 4)
    return found


def main() -> None:
    """Import by every method, measure, and write the results."""
    options = parser(__doc__)
    options.add_argument("--base", type=Path, required=True)
    options.add_argument("--tasks", nargs="+", default=["bace", "bbbp", "clintox"])
    arguments = options.parse_args()
    run, folder = run_of(arguments), arguments.work / "hu2020-models"
    sources = write_models(run, arguments.tasks, folder)
    base = read_hu2020(arguments.base, KIND).vector
    cosines: dict[str, float] = {}
    content: dict[str, Any] = {
        "what": "fine-tuned networks in Hu et al.'s layout, imported",
        "seed": run.seed,
        "cosines_with_the_base": cosines,
        "methods": {"separate": {"test": {}}},
        "machine": machine(1),
    }
    for task, source in sources.items():
        own = network_vector(read_hu2020(Path(source["path"]), KIND).network)
        cosines[task] = round(float(torch.cosine_similarity(own, base, dim=0)), 5)
        request = {"models": {task: source}, "method": "separate", "layers": KIND}
        made = folder / f"separate-{task}"
        import_models(make_import_config(request, "separate"), made, folder, replace_other=True)
        content["methods"]["separate"]["test"] |= scores(run, made)
    for method in ("adapters", "one-pass"):
        began = time.process_time()
        common = {"base": str(arguments.base), "molecules": str(folder / "molecules.smi")}
        request = {"models": sources, "method": method, "layers": KIND, **common}
        config = make_import_config(request, method)
        found = import_models(config, folder / method, folder / "work", replace_other=True)
        content["methods"][method] = {
            "test": scores(run, folder / method),
            "difference": found.difference,
            "cpu_seconds": round(time.process_time() - began, 1),
        }
        print(method, content["methods"][method], flush=True)
        write_json(Path("results/own-models/hu2020.json"), content)


if __name__ == "__main__":
    main()
