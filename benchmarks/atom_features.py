"""Formal charges and hydrogen counts as additional atom features: the gain in ROC-AUC, and whether
it comes from chemistry or from how molecules of a data set are drawn.

    python -m benchmarks.atom_features clintox bace --seed 0

Writes `results/<setting>/atom_features-seed<N>.json`: validation and test ROC-AUC of the model
fine-tuned with Hu et al.'s atom features, and with charges and hydrogens of molecules as drawn and
neutralised.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import by_task
from merging.data.molecule_dataset import MoleculeDataset, load_smiles
from merging.run.models import finetuned_model
from merging.run.run import Run
from merging.run.scores import evaluate, unified_forward
from merging.studies.forests import neutralise
from merging.training.supervised import MultitaskModel, train
from models.data.batch import GraphBatch
from models.data.molecule import MolGraph, pack
from models.data.smiles import featurize, read_smiles
from models.networks.hu2020 import Backbone, BackboneConfig
from models.state_dict import sub_state

MAX_CHARGE, MAX_HYDROGENS = 3, 4
DRAWN: dict[str, Callable[[str], str]] = {"as_drawn": str, "neutralised": neutralise}


class SeeingBackbone(Backbone):
    """A backbone with embeddings of formal charges and hydrogen counts.

    They are initialised with zeros, so that the initial outputs are those of the checkpoint.
    """

    def __init__(
        self, config: BackboneConfig, dropout: float, pretrained: dict[str, Tensor]
    ) -> None:
        super().__init__(config, dropout)
        self.load_state_dict(pretrained)
        self.charges = nn.Embedding(2 * MAX_CHARGE + 1, config.hidden_dim)
        self.hydrogens = nn.Embedding(MAX_HYDROGENS + 1, config.hidden_dim)
        nn.init.zeros_(self.charges.weight)
        nn.init.zeros_(self.hydrogens.weight)

    def embed(self, batch: GraphBatch) -> Tensor:
        """Embed four columns of atom features: (N, d)."""
        return super().embed(batch) + self.charges(batch.x[:, 2]) + self.hydrogens(batch.x[:, 3])


def graph_of(smiles: str) -> MolGraph:
    """Read a molecule to a graph whose `x` has two more columns: formal charge + 3, clipped to 0 to
    6, and number of hydrogens, at most 4."""
    text = featurize(smiles, strict=False).smiles
    graph, atoms = featurize(text, strict=False).graph, read_smiles(text, strict=False).GetAtoms()
    extra = [
        (
            min(max(atom.GetFormalCharge(), -MAX_CHARGE), MAX_CHARGE) + MAX_CHARGE,
            min(atom.GetTotalNumHs(), MAX_HYDROGENS),
        )
        for atom in atoms
    ]
    return replace(graph, x=torch.cat([graph.x, torch.tensor(extra)], dim=1))


def with_charges(run: Run, task: str, drawn: Callable[[str], str]) -> MoleculeDataset:
    """Return a task's dataset with the graphs `graph_of(drawn(smiles))`; split and labels are
    unchanged."""
    dataset = run.dataset(task)
    smiles = load_smiles(dataset, run.config.dataset_for(task), run.data, run.work / "data")
    return replace(dataset, graphs=pack([graph_of(drawn(text)) for text in smiles]))


def fine_tune(run: Run, dataset: MoleculeDataset) -> dict[str, float]:
    """Fine-tune with the settings and seeds of the run; return ROC-AUC at the best epoch by
    validation."""
    settings, shape = run.config.training_for(dataset.task), run.config.shape
    torch.manual_seed(run.seed)
    model = MultitaskModel(run.family, shape, {dataset.task: dataset}, settings.dropout)
    initial = sub_state(run.initial_state(), "network.")
    model.network = SeeingBackbone(shape, settings.dropout, initial)
    with TemporaryDirectory() as folder:
        made = train(model, settings, run.seed, Path(folder) / "resume.pt", run.device)
    model.network.load_state_dict(made.network)
    model.head(dataset.task).load_state_dict(made.heads[dataset.task])
    model.eval()
    sampled = replace(run, _datasets={dataset.task: dataset})
    found = evaluate(sampled, partial(model, task=dataset.task), dataset.task)
    areas = {subset: values["roc_auc"] for subset, values in found.items()}
    return {"epoch": made.record["best_epoch"], **areas}


def compared(run: Run, task: str) -> dict[str, Any]:
    """The fine-tuned model as it is, and with each way of drawing."""
    found = evaluate(run, unified_forward(run, finetuned_model(run, task), task), task)
    return {
        "hu2020": {subset: values["roc_auc"] for subset, values in found.items()},
        **{name: fine_tune(run, with_charges(run, task, drawn)) for name, drawn in DRAWN.items()},
    }


if __name__ == "__main__":
    by_task(__doc__, "atom_features", compared)
