"""The applicability domain of a task: fingerprints of its training molecules, errors by similarity
to them, and conformal sets."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from torch import Tensor
from tqdm import tqdm

from merging.data.split import Subset
from merging.run.forests import SUBSETS, forest
from merging.run.run import Run
from merging.run.validation import judged_by, unseen_outputs
from merging.targets.calibration import temperature_scale
from merging.targets.domain_scores import CONFIDENCE, fit_class_sets, fit_intervals, measure_bands
from merging.targets.label_scores import LabelMeasures
from merging.training.forest import fingerprint_rows
from models.artifact import ArtifactComponents, assemble
from models.data.fingerprint import similarity_bits
from models.data.smiles import read_smiles
from models.domain.measured import MeasuredLabel
from models.domain.neighbours import MoleculeSet, Words, packed
from models.domain.task_domain import DomainInfo, TaskDomain
from models.experts.combination import mean_outputs
from models.task import TaskInfo, answers

_GROUP = 256


@dataclass(frozen=True)
class MeasuredDomain:
    """The applicability domain of a task, with its description."""

    domain: TaskDomain
    info: DomainInfo


def measure_domain(run: Run, components: ArtifactComponents, task: str) -> MeasuredDomain:
    """Measure the applicability domain of a task of an artifact.

    The training molecules are those from which one of the experts that answer learnt: a forest also
    learns from the test molecules of related tasks. Errors are measured on the validation and test
    molecules, by the answers that the artifact gives by default. Where these have learnt from the
    validation molecules, as forests have, the answers there are those of the same models before.

    Args:
        run: its configuration describes the data of the task.
        components: the artifact, calibrated.
        task: of both, on molecules.

    Raises:
        ConfigError: the task's graphs are no molecules.
        DataError: its table is missing or has changed.
    """
    data, family = run.dataset(task), run.family
    molecules = family.source_molecules(run.config, data, run.folders)
    prints = similarity_fingerprints(list(molecules.values()), run.workers, task)
    rows = np.fromiter(molecules, np.int32)
    learnt = data.split if task not in components.manifest.forests else data.own_split or data.split
    train = learnt.train.numpy()
    known = MoleculeSet.sorted(prints[train], rows[train])
    similarities = {
        subset: _similarities(known, prints[getattr(data.split, subset).numpy()])
        for subset in SUBSETS
    }
    measures = _answered(run, components, task)
    columns = family.label_columns(data.labels[data.split.train], data.info)
    labels = tuple(
        _measured(data.info, similarities, {name: own[k] for name, own in measures.items()}, column)
        for k, column in enumerate(columns)
    )
    info = DomainInfo(
        molecules=len(known),
        file=data.record["file"],
        split=data.record["split"],
        confidence=CONFIDENCE,
    )
    return MeasuredDomain(TaskDomain(known, labels), info)


def _measured(
    info: TaskInfo,
    similarities: dict[Subset, NDArray[np.float64]],
    measures: dict[Subset, LabelMeasures],
    trained: NDArray[Any],
) -> MeasuredLabel:
    """Measure a label, by its predictions on the validation and test molecules and its values on
    the training molecules."""
    of_numbers = info.target == "regression"
    median = float(np.nanmedian(trained)) if of_numbers else None
    said = {name: own.predictions.astype(np.float64) for name, own in measures.items()}
    known = {name: own.known for name, own in measures.items()}
    both = [np.concatenate([values[name] for name in SUBSETS]) for values in (said, known)]
    bands = measure_bands(
        np.concatenate([similarities[name] for name in SUBSETS]), both[0], both[1], median
    )
    if info.scale == "log10":
        said, known = (
            {name: np.log10(own) for name, own in values.items()} for values in (said, known)
        )
    fit = fit_intervals if of_numbers else fit_class_sets
    valid, test = ((said[name], known[name]) for name in SUBSETS)
    return MeasuredLabel(bands=bands, conformal=fit(valid, test))


def _answered(
    run: Run, components: ArtifactComponents, task: str
) -> dict[Subset, list[LabelMeasures]]:
    """Return what the artifact answers by default for the validation and the test molecules, by
    label; for the validation molecules from models that have not learnt from them."""
    data, family, manifest = run.dataset(task), run.family, components.manifest
    single = replace(components, experts={task: components.experts[task]}, forests={}, domains={})
    model = assemble(single, run.device).model

    def forward(batch: Any) -> Tensor:
        output = manifest.family.answer(model, batch, [task], "own")[task]
        logits: Tensor = output.logits
        return logits

    outputs, labels = {}, {}
    for subset in SUBSETS:
        steps = data.steps(subset, family.evaluation_batch)
        outputs[subset], labels[subset] = family.predict(forward, steps, run.device)
    if judged_by(run, task):
        unseen = unseen_outputs(run, task, outputs["valid"])
        if data.info.target == "multilabel":  # The artifact's network is calibrated already.
            unseen = unseen * temperature_scale(unseen, labels["valid"])
        outputs["valid"] = unseen
    if task in manifest.forests and manifest.forests[task].default != "own":
        outputs = _with_forest(run, components, task, outputs)
    return {
        subset: family.label_measures(
            answers(outputs[subset], data.info.output_kind), labels[subset], data.info
        )
        for subset in SUBSETS
    }


def _with_forest(
    run: Run, components: ArtifactComponents, task: str, own: dict[Subset, Tensor]
) -> dict[Subset, Tensor]:
    """Return the outputs of the task's forest, or of its mean with the network; for the validation
    molecules of the forest before it learnt from them."""
    data, trees = run.dataset(task), components.forests[task]
    info = components.manifest.forests[task]
    smiles = run.family.smiles(run.config, data, run.folders)
    rows = fingerprint_rows([smiles[row] for row in data.split.test.tolist()], task)
    outputs = {
        "valid": run.result(forest(run, task)).tensors["outputs/valid"],
        "test": torch.from_numpy(trees.outputs(rows)),
    }
    if info.default == "forest":
        scale = torch.from_numpy(trees.scale).float()
        return {subset: scale * outputs[subset] for subset in SUBSETS}
    scale = torch.from_numpy(trees.both_scale).float()
    return {
        subset: scale * mean_outputs(own[subset].float(), outputs[subset], info.weight)
        for subset in SUBSETS
    }


def _similarities(known: MoleculeSet, prints: Words) -> NDArray[np.float64]:
    """Return the similarity of molecules to the nearest one of a set."""
    return np.array([known.nearest(query, 1).similarities[0] for query in prints])


def similarity_fingerprints(smiles: Sequence[str], workers: int, task: str) -> Words:
    """Compute the fingerprints by which molecules are compared, as the service does: from the
    canonical SMILES.

    Args:
        smiles: M molecules, read as data sets are (`strict` False).
        workers: number of processes.
        task: for the progress bar.

    Returns:
        (M, WORDS) uint64.
    """
    groups = [smiles[begin : begin + _GROUP] for begin in range(0, len(smiles), _GROUP)]
    with ProcessPoolExecutor(workers) as pool:
        found = tqdm(pool.map(_fingerprints, groups), total=len(groups), desc=f"{task}: similarity")
        return packed(np.stack(list(chain.from_iterable(found))))


def canonical(smiles: str) -> str:
    """Return the canonical SMILES of a molecule of a data set, as the service shows it."""
    with rdBase.BlockLogs():
        text: str = Chem.MolToSmiles(read_smiles(smiles, strict=False))
    return text


def _fingerprints(smiles: Sequence[str]) -> NDArray[np.bool_]:
    with rdBase.BlockLogs():
        mols = (read_smiles(canonical(text), strict=False) for text in smiles)
        return np.stack([similarity_bits(mol) for mol in mols])
