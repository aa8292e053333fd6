"""The study of merged experts: trains banks of experts, and measures routing, ensembles, merged
experts and their cost."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.data.files import write_json
from merging.run.scores import environment
from merging.run.stage import Stage
from merging.run.store import ResultStore, StageResult
from merging.studies.experts.config import ExpertsConfig
from merging.studies.experts.cost import forward_seconds
from merging.studies.experts.domains import Domain, load_domain
from merging.studies.experts.model import ExpertBank, route
from merging.studies.experts.probe import probe
from merging.studies.experts.summary import summarise_experts
from merging.studies.experts.training import train_bank
from models.data.batch import GraphBatch
from models.data.feature_graph import collate_features

COMPETENCE_BATCH = 64
Record = dict[str, Any]
Encoder = Callable[[GraphBatch], Tensor]


@dataclass(frozen=True)
class Study:
    """The configuration of a study with its data, and the work folder in which results are kept."""

    config: ExpertsConfig
    domains: tuple[Domain, ...]
    work: Path

    @classmethod
    def open(cls, config: ExpertsConfig, data: Path, work: Path) -> "Study":
        """Read all domains. Raises DataError."""
        cache = work / "data"
        domains = (load_domain(name, config, data, cache) for name in config.domains)
        return cls(config, tuple(domains), work)

    def bank(self, variant: str, seed: int) -> ExpertBank:
        """Train the experts of a variant, or read them from the work folder; an interrupted
        training is resumed."""
        bank = ExpertBank(self.config.network, self.config.domains, seed)
        bank.load_state_dict(self._result(self._trained(variant, seed)).tensors)
        return bank.eval().requires_grad_(False)

    def controls(self, seed: int) -> Record:
        """Return the record of `measure_controls`, measured once."""
        return self._record("controls", seed, partial(measure_controls, self, seed))

    def measured(self, variant: str, seed: int) -> Record:
        """Return the record of `measure_bank` for a variant's bank, measured once."""
        make = partial(self._of_bank, measure_bank, variant, seed)
        return self._record("measured", seed, make, self._trained(variant, seed))

    def cost(self, variant: str, seed: int) -> Record:
        """Return the record of `measure_cost` for a variant's bank, measured once."""
        make = partial(self._of_bank, measure_cost, variant, seed)
        return self._record("cost", seed, make, self._trained(variant, seed))

    def _trained(self, variant: str, seed: int) -> Stage:
        def make(checkpoint: Path) -> StageResult:
            settings = self.config.variants[variant]
            bank = train_bank(self.domains, self.config, settings, seed, checkpoint)
            return StageResult(bank.state_dict())

        settings = self._settings(), self.config.variants[variant]
        return Stage(f"bank-{variant}", seed, settings, (), make)

    def _of_bank(
        self, measure: Callable[["Study", ExpertBank], Record], variant: str, seed: int
    ) -> Record:
        return measure(self, self.bank(variant, seed))

    def _record(self, what: str, seed: int, make: Callable[[], Record], *inputs: Stage) -> Record:
        """The record of a measurement, computed now or read from the work folder."""
        name = "-".join([what, *(stage.name.removeprefix("bank-") for stage in inputs)])
        settings = () if inputs else (self._settings(),)
        stage = Stage(name, seed, settings, inputs, lambda _: StageResult(record=make()))
        return self._result(stage).record

    def _result(self, stage: Stage) -> StageResult:
        return stage.result(ResultStore(self.work / "expert_merging"))

    def _settings(self) -> ExpertsConfig:
        """The settings that all variants depend on."""
        return self.config.model_copy(update={"variants": {}, "description": "", "setting": ""})


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
    controls = {str(seed): study.controls(seed) for seed in seeds}
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
    groups = [
        domain.graphs[first : first + COMPETENCE_BATCH]
        for first in range(0, len(domain.graphs), COMPETENCE_BATCH)
    ]
    return torch.cat([bank.competence(collate_features(group)) for group in groups], dim=1).mean(1)


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
