"""Supervised experts that are asked about a target, their ensemble, and one merged expert."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from merging.data.molecule_dataset import MoleculeDataset
from merging.family import StateDict
from merging.mergers.task_vector import is_merged
from merging.run.run import Run
from merging.run.stages import teacher, trained_model
from merging.studies.experts.competence import correlation
from merging.studies.experts.metadata import bank_of, known_molecules
from merging.studies.experts.model import merge_experts, route
from merging.studies.experts.study import relative_error
from merging.targets.losses import LabelScale
from merging.targets.metrics import compute_outputs
from merging.targets.probe import PENALTY, fit_probe
from merging.training.alignment import set_statistics
from models.compiled.model import fastest
from models.data.batch import GraphBatch
from models.experts.expert import Expert
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel, UnifiedOutput
from models.networks.hu2020 import Backbone, make_backbone
from models.state_dict import sub_state

TOP_K = 3
Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Asked:
    """A network's answers for a target of q known and n test molecules.

    Attributes:
        embeddings: (n, d), of the test molecules.
        fitted: (n,), by a head that is fitted to the known molecules; labels are standardised by
            them.
        outputs: (n,), by the network's own head, in its units; None without one.
        doubt: root mean squared leave-one-out error of the fitted head on the known molecules.
        agreement: rank correlation of its own head with the labels of the known molecules, 0
            without one.
    """

    embeddings: Tensor
    fitted: Tensor
    outputs: Tensor | None
    doubt: float
    agreement: float


@dataclass(frozen=True, eq=False)
class Target:
    """A task of which only some molecules are known (`known_molecules`).

    Attributes:
        run, task: the task.
    """

    run: Run
    task: str

    @cached_property
    def data(self) -> MoleculeDataset:
        """Molecules and labels."""
        data: MoleculeDataset = self.run.dataset(self.task)
        return data

    @cached_property
    def labels(self) -> tuple[Tensor, Tensor]:
        """(q, 1) and (n, 1), the labels of known and test molecules, standardised by the known
        ones."""
        rows = known_molecules(self.data), self.data.split.test
        known, test = (self.data.labels[chosen] for chosen in rows)
        scale = LabelScale.fit(self.data.info, [known])
        return scale.standardise(known), scale.standardise(test)

    def ask(self, network: StateDict, head: StateDict | None) -> Asked:
        """Ask a network, with BatchNorm statistics of the known molecules."""
        backbone = make_backbone(network, self.run.config.shape, "an expert")
        known_rows, test_rows = known_molecules(self.data), self.data.split.test
        embed = embedding(backbone, self.data, known_rows)
        known, test = (
            compute_outputs(embed, self.data.graphs, rows, torch.device("cpu"))
            for rows in (known_rows, test_rows)
        )
        fitted = fit_probe(known, self.labels[0], "regression", None)
        doubt = leave_one_out(known, self.labels[0][:, 0])
        predicted = _apply(fitted, test)
        if head is None:
            return Asked(test, predicted, None, doubt, 0.0)
        agreement = _correlation(_apply(head, known), self.labels[0][:, 0])
        return Asked(test, predicted, _apply(head, test), doubt, agreement)

    def score(self, fitted: Tensor, outputs: Tensor | None) -> dict[str, float]:
        """Compute scores on the test molecules: "spearman" and "rmse" (in standard deviations) of
        a fitted head, and "own_head", the rank correlation of own outputs."""
        labels = self.labels[1][:, 0]
        found = {
            "spearman": _correlation(fitted, labels),
            "rmse": float((fitted - labels).square().mean().sqrt()),
        }
        if outputs is not None:
            found["own_head"] = _correlation(outputs, labels)
        return {name: round(value, 5) for name, value in found.items()}


def _apply(head: Mapping[str, Tensor], embeddings: Tensor) -> Tensor:
    return (embeddings @ head["weight"].T + head["bias"])[:, 0]


def _correlation(outputs: Tensor, labels: Tensor) -> float:
    return correlation(outputs.double().numpy(), labels.double().numpy())


def embedding(
    backbone: Backbone, data: MoleculeDataset, rows: Tensor
) -> Callable[[GraphBatch], Tensor]:
    """Return the function from a batch to graph embeddings (G, d), with BatchNorm statistics of the
    molecules `rows`.

    The embeddings are the outputs of an expert whose head is the identity, so that the compiled
    model can compute them.
    """
    names = [f"d{k}" for k in range(backbone.config.hidden_dim)]
    expert = Expert(backbone.config, 1, names, target=data.info.output_kind)
    # A new adapter subtracts nothing.
    set_statistics(expert.adapters, backbone, data.graphs, rows, torch.device("cpu"))
    with torch.no_grad():
        expert.head.weight.copy_(torch.eye(len(names)))
        expert.head.bias.zero_()
    model = fastest(UnifiedModel(backbone, {"embedding": expert}, RouterConfig()).eval())

    def embed(batch: GraphBatch) -> Tensor:
        output: UnifiedOutput = model(batch, ["embedding"])
        return output.logits["embedding"]

    return embed


def leave_one_out(embeddings: Tensor, labels: Tensor) -> float:
    """Compute the root mean squared leave-one-out error of the ridge regression of `fit_probe`, in
    closed form.

    Args:
        embeddings: (q, d); every dimension is standardised over all q.
        labels: (q,).
    """
    x, y = embeddings.double(), labels.double() - labels.double().mean()
    x = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-12)
    hat = x @ torch.linalg.solve(x.T @ x + PENALTY * torch.eye(x.shape[1]).double(), x.T)
    left = 1 - hat.diagonal() - 1 / len(y)
    return float(((y - hat @ y) / left).square().mean().sqrt())


@dataclass(frozen=True, eq=False)
class Bank:
    """Experts that were asked about a target.

    Attributes:
        target: the target.
        states: by expert its network and head, as one state dict.
        asked: by expert its answers.
    """

    target: Target
    states: Mapping[str, StateDict]
    asked: Mapping[str, Asked]

    @classmethod
    def ask(cls, target: Target) -> "Bank":
        """Ask all experts of a target's bank."""
        states = {
            name: _expert_state(target.run, name) for name in bank_of(target.run, target.task)
        }
        return cls(
            target, states, {name: _ask_state(target, state) for name, state in states.items()}
        )

    def combined(self, alpha: Tensor) -> Record:
        """Score the ensemble and the merged expert of weights alpha (B,), and the relative error
        of the merged embeddings to those of the ensemble."""
        asked = list(self.asked.values())
        chosen = alpha.nonzero().flatten().tolist()
        embeddings, fitted, outputs = (
            sum(alpha[k] * getattr(asked[k], name) for k in chosen)
            for name in ("embeddings", "fitted", "outputs")
        )
        merged = _ask_state(self.target, merge_experts(list(self.states.values()), alpha))
        return {
            "ensemble": self.target.score(fitted, outputs),
            "merged": self.target.score(merged.fitted, merged.outputs),
            "relative_error": round(relative_error(merged.embeddings, embeddings), 5),
        }

    def routed(self, psi: Mapping[str, float]) -> Record:
        """Route by a competence: the names by competence, the weights of the first `TOP_K`, and
        `combined` of them.

        Weights are the softmax of the competence in standard deviations over the bank, as measures
        have different units.
        """
        values = torch.tensor([psi[name] for name in self.states]).double()
        alpha = route((values - values.mean()) / values.std().clamp(min=1e-12), TOP_K)
        order = values.argsort(descending=True, stable=True).tolist()
        names = list(self.states)
        return {
            "ranked": [names[k] for k in order],
            "alpha": [round(float(alpha[k]), 4) for k in order[:TOP_K]],
            **self.combined(alpha.float()),
        }


def _expert_state(run: Run, name: str) -> StateDict:
    """The merged tensors of an expert's network, and its head."""
    model = trained_model(run, teacher(run, name))
    network = {f"network.{k}": v for k, v in model.network.items() if is_merged(k, v)}
    return network | {f"head.{k}": v for k, v in model.heads[name].items()}


def _ask_state(target: Target, state: StateDict) -> Asked:
    """Ask an expert; what it does not merge (statistics) is set by the target's molecules."""
    start = sub_state(target.run.initial_state(), "network.")
    return target.ask(start | sub_state(state, "network."), sub_state(state, "head."))
