"""The study of merged experts: trains banks of experts, and measures routing, ensembles, merged
experts and their cost."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from merging.config.base import fingerprint
from merging.data.files import read_json, reading, write_json, write_tensors
from merging.run.store import made_once
from merging.studies.experts.config import ExpertsConfig
from merging.studies.experts.cost import forward_seconds
from merging.studies.experts.domains import Domain, load_domain
from merging.studies.experts.model import ExpertBank, route
from merging.studies.experts.probe import probe
from merging.studies.experts.summary import summarise_experts
from merging.studies.experts.training import train_bank
from merging.studies.results import environment
from models.data.batch import GraphBatch
from models.data.feature_graph import collate_features

COMPETENCE_BATCH = 64
Record = dict[str, Any]
Encoder = Callable[[GraphBatch], Tensor]


@dataclass(frozen=True)
class Study:
    """A configuration with its data, and the work folder in which finished pieces are kept and
    found again."""

    config: ExpertsConfig
    domains: tuple[Domain, ...]
    work: Path

    @classmethod
    def open(cls, config: ExpertsConfig, data: Path, work: Path) -> "Study":
        """Read all domains. Raises DataError."""
        return cls(
            config,
            tuple(load_domain(name, config, data, work / "data") for name in config.domains),
            work,
        )

    def bank(self, variant: str, seed: int) -> ExpertBank:
        """The trained experts of a variant, trained now or read back; an interrupted training goes
        on."""
        path = self._path("bank", variant, seed, "safetensors")
        bank = ExpertBank(self.config.network, self.config.domains, seed)
        if not path.is_file():
            with made_once(path):
                if not path.is_file():
                    checkpoint = path.with_suffix(".resume.pt")
                    settings = self.config.variants[variant]
                    bank = train_bank(self.domains, self.config, settings, seed, checkpoint)
                    write_tensors(path, bank.state_dict())
                    checkpoint.unlink(missing_ok=True)
        with reading(path):
            bank.load_state_dict(load_file(path))
        return bank.eval().requires_grad_(False)

    def kept(self, what: str, variant: str, seed: int, make: Callable[[], Record]) -> Record:
        """A measured piece, measured now or read back."""
        path = self._path(what, variant, seed, "json")
        stored: Record | None = read_json(path)
        if stored is None:
            stored = make()
            write_json(path, stored)
        return stored

    def measured(self, variant: str, seed: int) -> Record:
        """What a variant's bank is worth, see `measure_bank`."""
        return self.kept(
            "measured", variant, seed, lambda: measure_bank(self, self.bank(variant, seed))
        )

    def cost(self, variant: str, seed: int) -> Record:
        """What an answer of a variant's bank costs, see `measure_cost`."""
        return self.kept(
            "cost", variant, seed, lambda: measure_cost(self, self.bank(variant, seed))
        )

    def _path(self, what: str, variant: str, seed: int, ending: str) -> Path:
        config = self.config.model_copy(update={"variants": {}, "description": "", "setting": ""})
        parts = (
            [config, self.config.variants[variant]] if variant in self.config.variants else [config]
        )
        return (
            self.work
            / "expert_merging"
            / f"{what}-{variant}-seed{seed}-{fingerprint(*parts)}.{ending}"
        )


def run_study(
    config: ExpertsConfig, data: Path, work: Path, seeds: Sequence[int], output: Path
) -> Record:
    """Train and measure every variant with every seed, and write the results file. The same call
    resumes an interrupted study.

    Args:
        config: the study.
        data, work: folders, as in `merging.run.run.Run`.
        seeds: one bank is trained per seed and variant.
        output: the JSON file.

    Returns:
        The content of the results file.
    """
    study = Study.open(config, data, work)
    controls = {
        str(seed): study.kept("controls", "untrained", seed, partial(measure_controls, study, seed))
        for seed in seeds
    }
    measured = {
        name: {str(seed): study.measured(name, seed) for seed in seeds} for name in config.variants
    }
    content = {
        "what": (
            "expert merging in a mixture of graph experts: routing, ensemble, merged expert, KDEM"
            " and PPEM"
        ),
        "settings": config.model_dump(mode="json"),
        "seeds": list(seeds),
        "environment": environment(),
        **summarise_experts(measured, controls),
        "cost": study.cost(next(iter(config.variants)), seeds[0]),
        "controls": controls,
        "measured": measured,
    }
    write_json(output, content)
    return content


def measure_controls(study: Study, seed: int) -> Record:
    """Probe, by domain, the common initialisation of the experts ("untrained") and the node
    features themselves ("features")."""
    untrained = ExpertBank(study.config.network, ("untrained",), seed).experts[0]
    encoders: dict[str, Encoder] = {"untrained": untrained, "features": lambda batch: batch.x}
    return {
        domain.name: {name: asdict(probe(domain, encoder)) for name, encoder in encoders.items()}
        for domain in study.domains
    }


def measure_bank(study: Study, bank: ExpertBank) -> Record:
    """Measure, by domain, competence and probe of every expert, and the routing of the bank with
    and without the domain's expert."""
    measured = {}
    for domain in study.domains:
        experts = {
            name: asdict(probe(domain, expert))
            for name, expert in zip(bank.names, bank.experts, strict=True)
        }
        psi = domain_competence(bank, domain)
        others = torch.tensor([name != domain.name for name in bank.names])
        measured[domain.name] = {
            "competence": dict(zip(bank.names, psi.tolist(), strict=True)),
            "experts": experts,
            "all": measure_routing(bank, domain, psi, study.config.top_k),
            "left_out": measure_routing(
                bank.without(domain.name), domain, psi[others], study.config.top_k
            ),
        }
    return measured


def measure_routing(bank: ExpertBank, domain: Domain, psi: Tensor, k: int) -> Record:
    """Route a domain over the experts of a bank, and probe ensemble and merged experts.

    Args:
        bank: K experts.
        domain: the data.
        psi: (K,) competence of the experts for the domain.
        k: number of experts with a weight above 0.

    Returns:
        "ranked", names by competence; "alpha", routing weights; "relative_error" of the merged
        outputs to those of the ensembles; "probes" of the encoders.
    """
    alpha, everyone = route(psi, k), route(psi, len(psi))
    ranked = [bank.names[i] for i in psi.argsort(descending=True, stable=True).tolist()]
    with torch.no_grad():
        errors = {
            "merged": relative_error(
                bank.merged(alpha, domain.evaluated), bank.ensemble(alpha, domain.evaluated)
            ),
            "merged_all": relative_error(
                bank.merged(everyone, domain.evaluated), bank.ensemble(everyone, domain.evaluated)
            ),
        }
    encoders: dict[str, Encoder] = {
        "ensemble": lambda batch: bank.ensemble(alpha, batch),
        "merged": lambda batch: bank.merged(alpha, batch),
        "merged_all": lambda batch: bank.merged(everyone, batch),
    }
    probes = {name: asdict(probe(domain, encoder)) for name, encoder in encoders.items()}
    return {"ranked": ranked, "alpha": alpha.tolist(), "relative_error": errors, "probes": probes}


def domain_competence(bank: ExpertBank, domain: Domain) -> Tensor:
    """Compute psi of every expert for a domain, (K,): the mean over its graphs."""
    parts = [
        domain.graphs[first : first + COMPETENCE_BATCH]
        for first in range(0, len(domain.graphs), COMPETENCE_BATCH)
    ]
    return torch.cat([bank.competence(collate_features(part)) for part in parts], dim=1).mean(1)


def relative_error(output: Tensor, target: Tensor) -> float:
    """Compute |output - target|^2 / |target|^2."""
    return float((output - target).square().sum() / target.square().sum())


def measure_cost(study: Study, bank: ExpertBank) -> Record:
    """Seconds of one request, by domain: a piece of a large graph, or a batch of molecules."""
    requests = {
        domain.name: collate_features(domain.graphs[: 1 if domain.has_node_labels else 32])
        for domain in study.domains
    }
    requests |= {
        f"{domain.name}_whole": domain.evaluated
        for domain in study.domains
        if domain.has_node_labels
    }
    return {
        name: forward_seconds(bank, batch, study.config.top_k) for name, batch in requests.items()
    }
