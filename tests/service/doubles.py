"""Stand-ins for the service's tests: an engine that needs no model, a running application without a port, a tiny artifact."""

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import torch
from fastapi import FastAPI

from models.artifact import TaskInfo, make_manifest, save_artifact
from models.backbone import Backbone, BackboneConfig
from models.graph import MolGraph
from models.router import RouterConfig
from models.unified import Expert, Routing
from service.app import create_app
from service.engine import Engine, EngineInfo, PassOutput
from service.settings import Settings

LABELS = {"bbbp": ("p_np",), "clintox": ("FDA_APPROVED", "CT_TOX"), "tox21": ("NR-AR", "NR-ER", "SR-p53")}
DETAILS = {"created": "2026-01-01T00:00:00+00:00", "format_version": 1, "backbone": {}, "rank": 2, "router": {}, "provenance": {}, "metrics": {}}
POISON = 91
"""Atom type (uranium) on which the dummy engine fails."""


class DummyEngine:
    """Answers label j of the i-th task with 1 / (atoms + i + j + 1 + shift); can be held in a pass, and fails on uranium."""

    def __init__(self, version: str = "1", shift: int = 0) -> None:
        self.shift = shift
        self.info = EngineInfo("dummy", version, f"{shift}" * 64, "cpu", LABELS, dict.fromkeys(LABELS, "a task"), ("layer_0", "graph"), DETAILS)
        self.passes: list[tuple[int, tuple[str, ...], str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def run(self, graphs: Sequence[MolGraph], tasks: Sequence[str], routing: Routing) -> PassOutput:
        self.passes.append((len(graphs), tuple(tasks), routing))
        self.entered.release()
        assert self.gate.wait(30)
        if any((graph.x[:, 0] == POISON).any() for graph in graphs):
            raise RuntimeError("the model broke")
        atoms = np.array([graph.num_nodes for graph in graphs], dtype=np.float32)[:, None]
        names = list(LABELS)
        probabilities = {task: 1 / (atoms + names.index(task) + np.arange(len(LABELS[task]), dtype=np.float32) + 1 + self.shift) for task in tasks}
        weights = np.full((len(graphs), 2, len(names)), 1 / len(names), dtype=np.float32)
        return PassOutput(probabilities, dict.fromkeys(tasks, weights))


def settings_of(**values: object) -> Settings:
    return Settings.model_validate({"artifact": Path("nowhere"), **values})


@asynccontextmanager
async def serving(engine: Engine | None = None, **values: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a started application, without a port."""
    app = create_app(settings_of(**values), DummyEngine() if engine is None else engine)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


def metric(text: str, name: str) -> float:
    """The value of a series, written as in the exposition, e.g. `a_total{b="c"}`."""
    return next(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name + " "))


def save_pico_artifact(folder: Path, labels_of: dict[str, tuple[str, ...]] = LABELS) -> Path:
    """A model with random weights that is small but has every part."""
    torch.manual_seed(7)
    config = BackboneConfig(kind="gcn", num_layers=2, hidden_dim=8)
    experts = {task: Expert(config, 2, labels) for task, labels in labels_of.items()}
    for expert in experts.values():
        for site in expert.adapters.sites:
            torch.nn.init.normal_(site.up)  # zero by default, and then every expert would be the same
    router = RouterConfig(temperature=0.5, graph_temperature=0.5)  # soft, so that mixing shows in the answers
    tasks = {task: TaskInfo(labels=labels, description=f"the {task} set") for task, labels in labels_of.items()}
    save_artifact(folder, make_manifest("pico", "0.1.0", config, 2, router, tasks), Backbone(config), experts)
    return folder
