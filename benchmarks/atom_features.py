"""The gain of a network from formal charges and hydrogens, and whether it learns chemistry from
them or how a data set was drawn.

    python -m benchmarks.atom_features clintox bace --seed 0

Writes `results/<setting>/atom_features-seed<N>.json`: ROC-AUC of both parts for the fine-tuned
model with Hu et al.'s atom features, and fine-tuned likewise with charges and hydrogens of
molecules as they are drawn, and of neutralised ones.
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
    """A backbone with embeddings of charges and hydrogens as well.

    They start at zero, so that at first it computes what the checkpoint computes.
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
    """Read a graph with two more columns of `x`: charge (plus 3) and number of hydrogens."""
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
    """Return a task's dataset with these graphs; its split and labels are unchanged."""
    dataset = run.dataset(task)
    smiles = load_smiles(dataset, run.config.dataset_for(task), run.data, run.work / "data")
    return replace(dataset, graphs=pack([graph_of(drawn(text)) for text in smiles]))


def fine_tune(run: Run, dataset: MoleculeDataset) -> dict[str, float]:
    """Scores at the epoch that is best on validation; settings and seeds of the real
    fine-tuning."""
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
