"""Stages that compute the competence of supervised experts by metadata: fingerprints of molecules,
and the experts' errors on their validation molecules."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merging.data.molecule_dataset import MoleculeDataset, load_smiles
from merging.run.domains import similarity_fingerprints
from merging.run.run import Run
from merging.run.scores import plain_forward, predict_subset
from merging.run.stage import Stage
from merging.run.stages import task_settings, teacher, trained_model
from merging.run.store import StageResult
from merging.studies.experts.competence import (
    NEAREST,
    Knowledge,
    near_accuracy,
    near_labels,
    similarity,
)
from merging.targets.losses import LabelScale
from models.data.fingerprint import SIMILARITY_BITS
from models.domain.neighbours import MoleculeSet, Words

KNOWN = 100
Record = dict[str, Any]


def fingerprints(run: Run, task: str) -> Stage:
    """Return the stage that computes the fingerprints of a task's molecules; its tensor `words`
    holds the bits of `Words`, (G, WORDS) int64."""
    settings = SIMILARITY_BITS, *task_settings(run, task)
    make = partial(_make_fingerprints, run, task)
    return Stage(f"experts/fingerprints/{task}", run.seed, settings, (), make)


def _make_fingerprints(run: Run, task: str, _: Path) -> StageResult:
    spec = run.config.dataset_for(task)
    smiles = load_smiles(run.dataset(task), spec, run.data, run.work / "data")
    words = similarity_fingerprints(smiles, run.workers, task)
    return StageResult({"words": torch.from_numpy(words.view(np.int64))})


def past_errors(run: Run, task: str) -> Stage:
    """Return the stage that records the absolute errors of a task's expert on its validation
    molecules, in standard deviations of the training labels: its tensor `errors` is (m,)."""
    make = partial(_make_errors, run, task)
    return Stage(f"experts/errors/{task}", run.seed, (), (teacher(run, task),), make)


def _make_errors(run: Run, task: str, _: Path) -> StageResult:
    outputs, labels = predict_subset(run, own_forward(run, task), task, "valid")
    data = run.dataset(task)
    scale = LabelScale.fit(data.info, [data.labels[data.split.train]])
    errors = scale.standardise(outputs) - scale.standardise(labels)
    return StageResult({"errors": errors[:, 0].abs()})


def own_forward(run: Run, task: str) -> Callable[[Any], Any]:
    """Return the function from a batch to the outputs of a task's own model."""
    model = trained_model(run, teacher(run, task))
    return plain_forward(run, task, model.network, model.heads[task])


def _words(run: Run, task: str, rows: Tensor) -> Words:
    """(n, WORDS), the fingerprints of some molecules."""
    words = run.result(fingerprints(run, task)).tensors["words"]
    return words[rows].numpy().view(np.uint64)


def known_molecules(data: MoleculeDataset) -> Tensor:
    """Return the rows of the molecules that are known of a target: at most `KNOWN` of its
    validation molecules, taken evenly."""
    rows = data.split.valid
    return rows[torch.linspace(0, len(rows) - 1, min(KNOWN, len(rows))).long()]


def knowledge(run: Run, task: str) -> Knowledge:
    """Return what a task's expert leaves beside its weights."""

    def molecules(rows: Tensor) -> MoleculeSet:
        words = _words(run, task, rows)
        return MoleculeSet.sorted(words, np.arange(len(words), dtype=np.int32))

    split = run.dataset(task).split
    labels = run.dataset(task).labels[split.train, 0].double().numpy()
    errors = run.result(past_errors(run, task)).tensors["errors"].double().numpy()
    return Knowledge(molecules(split.train), labels, molecules(split.valid), errors)


def metadata_competence(run: Run, task: str) -> Stage:
    """Return the stage that computes the competence of every expert of a target's bank by metadata:
    its record is {measure: {expert: number}}, and "seconds" of processor time."""
    known = [fingerprints(run, name) for name in (task, *bank_of(run, task))]
    errors = [past_errors(run, name) for name in bank_of(run, task)]
    make = partial(_make_competence, run, task)
    return Stage(f"experts/metadata/{task}", run.seed, (NEAREST, KNOWN), (*known, *errors), make)


def _make_competence(run: Run, task: str, _: Path) -> StageResult:
    data = run.dataset(task)
    rows = known_molecules(data)
    queries, labels = _words(run, task, rows), data.labels[rows, 0].double().numpy()
    experts = {name: knowledge(run, name) for name in bank_of(run, task)}
    measures: dict[str, Callable[[Knowledge], float]] = {
        "similarity": lambda expert: similarity(expert, queries),
        "near_accuracy": lambda expert: near_accuracy(expert, queries),
        "near_labels": lambda expert: near_labels(expert, queries, labels),
    }
    start = time.process_time()
    record: Record = {
        measure: {name: psi(expert) for name, expert in experts.items()}
        for measure, psi in measures.items()
    }
    return StageResult(record={**record, "seconds": round(time.process_time() - start, 4)})


def bank_of(run: Run, task: str) -> tuple[str, ...]:
    """Return the experts that a target may ask: those of all tasks but itself and its related
    ones."""
    own = {task, *run.config.related_to(task)}
    return tuple(name for name in run.tasks if name not in own)
