"""Stand-ins for the service's tests: an engine that needs no model, a running application without a
port, a tiny artifact."""

import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import torch
from fastapi import FastAPI

from models.artifact import load_components, save_artifact
from models.data.fingerprint import BITS, DESCRIPTORS, FINGERPRINT_RULE
from models.data.molecule import MolGraph
from models.data.schema import AtomsInput, FeatureInput, MoleculeInput
from models.drugs import DrugInfo, DrugTable
from models.experts.adapter import Stream
from models.experts.combination import ExpertChoice, ForestInfo
from models.experts.contributions import AnswerSum, ExpertSum
from models.experts.expert import Expert, SharedExpert, TaskExpert
from models.experts.forest import Forest
from models.experts.router import RouterConfig
from models.experts.symmetric_trees import SymmetricForest
from models.experts.unified import Routing
from models.manifest import StreamInfo, make_manifest
from models.networks.force_field import ForceFieldExpert
from models.networks.hu2020 import Backbone, BackboneConfig
from models.networks.pyg import GraphNetwork, GraphNetworkConfig
from models.networks.schnet import ForceField, ForceFieldConfig
from models.task import TaskInfo
from service.app import create_app
from service.core.engine import Engine, EngineInfo, PassOutput, TaskAnswer
from service.core.pipeline import PredictionQuery
from service.schemas import Problem
from service.settings import Settings
from tests.domains import domain_info, molecules, task_domain
from tests.forests import random_symmetric

LABELS = {
    "bbbp": ("p_np",),
    "clintox": ("FDA_APPROVED", "CT_TOX"),
    "tox21": ("NR-AR", "NR-ER", "SR-p53"),
}
DETAILS = {
    "created": "2026-01-01T00:00:00+00:00",
    "format_version": 1,
    "backbone": {},
    "rank": 2,
    "router": {},
    "provenance": {},
    "metrics": {},
}
POISON = 91
"""Atom type (uranium) on which the dummy engine fails."""


class DummyEngine:
    """Answers label j of the i-th task with 1 / (atoms + i + j + 1 + shift); can be held in a pass,
    and fails on uranium."""

    def __init__(self, version: str = "1", shift: int = 0) -> None:
        self.shift = shift
        infos = {
            task: TaskInfo(labels=labels, description="a task") for task, labels in LABELS.items()
        }
        self.info = EngineInfo(
            "dummy", version, f"{shift}" * 64, "cpu", infos, ("layer_0", "graph"), DETAILS
        )
        self.passes: list[tuple[int, tuple[str, ...], str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def run(
        self,
        graphs: Sequence[MolGraph],
        tasks: Sequence[str],
        routing: Routing,
        experts: ExpertChoice | None = None,
    ) -> PassOutput:
        assert experts in (None, "own"), "it has no forests"
        self.passes.append((len(graphs), tuple(tasks), routing))
        self.entered.release()
        assert self.gate.wait(30)
        if any((graph.x[:, 0] == POISON).any() for graph in graphs):
            raise RuntimeError("the model broke")
        names = list(LABELS)
        weights = np.full((2, len(names)), 1 / len(names), dtype=np.float32)
        return PassOutput(
            [
                {task: TaskAnswer(self._values(graph, task), weights) for task in tasks}
                for graph in graphs
            ]
        )

    def split(
        self,
        graphs: Sequence[MolGraph],
        labels: Mapping[str, Sequence[int]],
        routing: Routing,
        experts: ExpertChoice | None = None,
    ) -> list[dict[str, AnswerSum]]:
        """All atoms contribute alike, to a baseline of 0."""
        assert self.gate.wait(30)
        return [
            {
                task: self._sum(graph, self._values(graph, task)[list(chosen)])
                for task, chosen in labels.items()
            }
            for graph in graphs
        ]

    def _sum(self, graph: MolGraph, values: np.ndarray) -> AnswerSum:
        outputs = np.log(values / (1 - values)).astype(np.float64)
        atoms = np.tile(outputs / graph.num_nodes, (graph.num_nodes, 1))
        return AnswerSum(outputs, np.zeros(len(outputs)), {"own": ExpertSum(1.0, nodes=atoms)})

    def _values(self, graph: MolGraph, task: str) -> np.ndarray:
        return 1 / (
            graph.num_nodes
            + list(LABELS).index(task)
            + np.arange(len(LABELS[task]), dtype=np.float32)
            + 1
            + self.shift
        )


DRUGS: dict[str, Any] = {
    "molecules": 101,
    "unreadable": 0,
    "source": "a list",
    "date": "2026-01-01",
    "terms": "free",
    "sha256": "0" * 64,
    "in_training": 3,
    "in_training_by_task": {"bbbp": 3, "clintox": 0},
    "experts": {"bbbp": "own", "clintox": "own"},
}


def engine_with_drugs() -> DummyEngine:
    """A dummy engine whose answers for drugs of two tasks are 0, 0.01, ..., 1."""
    engine, even = DummyEngine(), np.linspace(0, 1, 101)
    answers = {task: np.stack([even] * len(LABELS[task]), axis=1) for task in ("bbbp", "clintox")}
    engine.info = replace(
        engine.info, drugs=DrugTable.of(answers), details={**DETAILS, "drugs": DRUGS}
    )
    return engine


def query_of(
    engine: DummyEngine | None = None,
    tasks: tuple[str, ...] = ("bbbp",),
    routing: Routing = "own",
    model: str = "dummy",
) -> PredictionQuery:
    """What a request for some tasks of the dummy engine asks."""
    return PredictionQuery.of(model, DummyEngine() if engine is None else engine, tasks, routing)


def stacked(output: PassOutput, task: str) -> np.ndarray:
    """A task's answers for all graphs of a pass, (G, labels)."""
    return np.stack([answer[task].values for answer in output.answers])


def settings_of(**values: object) -> Settings:
    return Settings.model_validate({"artifact": Path("nowhere"), **values})


@asynccontextmanager
async def serving(
    engine: Engine | None = None, **values: object
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a started application, without a port."""
    app = create_app(settings_of(**values), DummyEngine() if engine is None else engine)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


def metric(text: str, name: str) -> float:
    """The value of a series, written as in the exposition, e.g. `a_total{b="c"}`."""
    return next(
        float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name + " ")
    )


def save_pico_artifact(folder: Path, labels_of: dict[str, tuple[str, ...]] = LABELS) -> Path:
    """A model with random weights that is small but has every part."""
    torch.manual_seed(7)
    config = BackboneConfig(kind="gcn", num_layers=2, hidden_dim=8)
    experts = {task: Expert(config, 2, labels) for task, labels in labels_of.items()}
    for expert in experts.values():
        for site in expert.adapters.sites:
            # zero by default, and then every expert would be the same
            torch.nn.init.normal_(site.up)
    # soft, so that mixing shows in the answers
    router = RouterConfig(temperature=0.5, graph_temperature=0.5)
    tasks = {
        task: TaskInfo(labels=labels, description=f"the {task} set")
        for task, labels in labels_of.items()
    }
    save_artifact(
        folder, make_manifest("pico", "0.1.0", config, 2, router, tasks), Backbone(config), experts
    )
    return folder


def save_pico_forests(
    folder: Path, save_network: Callable[[Path], Path] = save_pico_artifact
) -> Path:
    """The tasks of `save_pico_artifact` or another network; `clintox` is answered by network and
    forest, `tox21` by the forest, `bbbp` has none."""
    with TemporaryDirectory() as plain:
        components = load_components(save_network(Path(plain) / "plain"))
    described: dict[str, ForestInfo] = {
        "clintox": ForestInfo(default="both", inputs=("ecfp4",), library="by hand 1"),
        "tox21": ForestInfo(default="forest", inputs=("ecfp4", "descriptors"), library="by hand 1"),
    }
    changes = {"input": MoleculeInput(reading_rule=2, fingerprint=FINGERPRINT_RULE)}
    manifest = components.manifest.model_copy(update={**changes, "forests": described})
    # Columns of aspirin and ethanol, so that the answers differ.
    forests: dict[str, Forest] = {
        "clintox": _asking(random_symmetric(2, seed=3)),
        "tox21": _asking(random_symmetric(3, seed=4)),
    }
    save_artifact(folder, manifest, components.backbone, components.experts, forests=forests)
    return folder


def save_pico_drugs(folder: Path) -> Path:
    """As `save_pico_artifact`, with answers 0, 0.01, ..., 1 for drugs of `bbbp`."""
    with TemporaryDirectory() as plain:
        components = load_components(save_pico_artifact(Path(plain) / "plain"))
    of_bbbp = {"in_training_by_task": {"bbbp": 3}, "experts": {"bbbp": "own"}}
    manifest = components.manifest.model_copy(update={"drugs": DrugInfo(**DRUGS | of_bbbp)})
    table = DrugTable.of({"bbbp": np.linspace(0, 1, 101)[:, None]})
    save_artifact(folder, manifest, components.backbone, components.experts, drugs=table)
    return folder


def _asking(forest: SymmetricForest) -> SymmetricForest:
    """The forest with questions about molecular weight, heavy atoms and logP."""
    columns, borders = np.zeros_like(forest.columns), np.zeros_like(forest.borders)
    asked = [
        (BITS + DESCRIPTORS.index("MolWt"), 100),
        (BITS + DESCRIPTORS.index("HeavyCrippen1"), 1),
    ]
    for level, (column, border) in enumerate(asked):
        columns[:, level], borders[:, level] = column, border
    return replace(forest, columns=columns, borders=borders)


def save_pico_shared_artifact(folder: Path) -> Path:
    """As `save_pico_artifact`, with all tasks but the first on one stream."""
    torch.manual_seed(8)
    config = BackboneConfig(kind="gcn", num_layers=2, hidden_dim=8)
    first, *others = LABELS
    stream = Stream(config, name="common")
    experts: dict[str, TaskExpert] = {first: Expert(config, 2, LABELS[first])}
    for site in experts[first].stream.sites:
        torch.nn.init.normal_(site.up)  # type: ignore[arg-type]
    for task in others:
        shared = SharedExpert(stream, 3, LABELS[task])
        torch.nn.init.normal_(shared.graph.up)
        experts[task] = shared
    router = RouterConfig(temperature=0.5, graph_temperature=0.5)
    tasks = {task: TaskInfo(labels=labels) for task, labels in LABELS.items()}
    streams = {"common": StreamInfo(tasks=tuple(others), graph_rank=3)}
    manifest = make_manifest("shared", "0.1.0", config, 2, router, tasks, streams=streams)
    save_artifact(folder, manifest, Backbone(config), experts)
    return folder


FEATURES = {"papers": 3, "pages": 5, "weights": 3}
ELEMENTS = {"ethanol": (1, 6, 8), "salt": (1, 8, 11, 17)}


def save_pico_graph_artifact(folder: Path, rank: int = 2) -> Path:
    """Two tasks on nodes, of other features each (the second has an encoder), and a regression on
    graphs; random weights."""
    torch.manual_seed(8)
    config = GraphNetworkConfig(kind="pyg_gcn", in_dim=3, num_layers=2, hidden_dim=8)
    tasks = {
        "papers": TaskInfo(
            labels=("theory", "practice", "neither"),
            description="a subject",
            level="node",
            target="multiclass",
        ),
        "pages": TaskInfo(labels=("seen", "liked"), level="node"),
        "weights": TaskInfo(labels=("grams",), target="regression"),
    }
    experts = {
        task: Expert(config, rank, info.labels, info.level, info.target, FEATURES[task])
        for task, info in tasks.items()
    }
    for site in [site for expert in experts.values() for site in expert.adapters.sites]:
        torch.nn.init.normal_(site.up)
    router = RouterConfig(temperature=0.5, graph_temperature=0.5)
    manifest = make_manifest(
        "pico-graphs", "0.1.0", config, rank, router, tasks, FeatureInput(num_features=FEATURES)
    )
    save_artifact(folder, manifest, GraphNetwork(config), experts)
    return folder


def save_pico_link_artifact(folder: Path) -> Path:
    """A task on pairs of nodes and one on nodes, of the same features; random weights."""
    torch.manual_seed(10)
    config = GraphNetworkConfig(kind="pyg_gcn", in_dim=3, num_layers=2, hidden_dim=8)
    tasks = {
        "links": TaskInfo(labels=("linked",), description="is cited", level="pair", head_dim=4),
        "papers": TaskInfo(labels=("theory", "practice"), level="node", target="multiclass"),
    }
    experts = {
        task: Expert(config, 0, info.labels, info.level, info.target, 3, info.head_dim)
        for task, info in tasks.items()
    }
    takes = FeatureInput(num_features=dict.fromkeys(tasks, 3), pair_tasks=("links",))
    manifest = make_manifest("pico-links", "0.1.0", config, 0, RouterConfig(), tasks, takes)
    save_artifact(folder, manifest, GraphNetwork(config), experts)
    return folder


def save_pico_force_field(folder: Path) -> Path:
    """A force field of two tasks with random weights."""
    torch.manual_seed(9)
    config = ForceFieldConfig(
        hidden_dim=8, num_filters=8, num_interactions=2, num_gaussians=6, cutoff=4.0
    )
    experts = {task: ForceFieldExpert(config) for task in ELEMENTS}
    for task, expert in experts.items():
        expert.elements[list(ELEMENTS[task])] = True
        expert.atom_energies[1:20] = -100.25 * torch.arange(1, 20, dtype=torch.float64)
        expert.scale.fill_(2.5)
    tasks = {
        task: TaskInfo(
            labels=("energy",), description=f"the {task} set", target="energy_and_forces"
        )
        for task in ELEMENTS
    }
    manifest = make_manifest(
        "pico-forces", "0.1.0", config, 0, RouterConfig(), tasks, AtomsInput(elements=ELEMENTS)
    )
    save_artifact(folder, manifest, ForceField(config), experts)
    return folder


def check_problem(response: httpx.Response, status: int, code: str) -> Problem:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate(response.json())
    assert (problem.status, problem.code, problem.type) == (status, code, "about:blank")
    titles = {413: "Content Too Large", 422: "Unprocessable Content"}
    assert problem.title == titles.get(status, HTTPStatus(status).phrase)
    assert len(problem.detail) >= 5
    return problem


DOMAIN_TASKS = ("clintox", "tox21")


def save_pico_domains(folder: Path, may_show: Collection[str] = ("clintox",)) -> Path:
    """The tasks of `save_pico_forests`; `clintox` and `tox21` know their training molecules, those
    of `clintox` may be shown."""
    with TemporaryDirectory() as plain:
        components = load_components(save_pico_forests(Path(plain) / "plain"))
    known = {"clintox": molecules()[:60], "tox21": molecules()[40:]}
    domains = {task: task_domain(smiles, len(LABELS[task])) for task, smiles in known.items()}
    infos = {task: domain_info(len(smiles), task in may_show) for task, smiles in known.items()}
    manifest = components.manifest.model_copy(update={"domains": infos})
    experts, forests = components.experts, components.forests
    save_artifact(folder, manifest, components.backbone, experts, forests=forests, domains=domains)
    return folder
