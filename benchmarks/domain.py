"""Cost of the search for the nearest training molecules, and a summary of what was measured by
similarity.

    python -m benchmarks.domain

CPU milliseconds a molecule, molecules of a screening library: their fingerprints, the search in
the largest task, in all tasks, and the whole explanation. By task of both released models: labels
with bands, in how many the error falls with similarity, in how many the farthest third is no better
than its own share of 1 (or the training median), and labels whose conformal sets held. Writes
`benchmarks/results/domain.json`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import RESULTS, in_turns, machine, summary
from benchmarks.molecules import library_molecules
from merging.data.files import write_json
from models.artifact import domain_file, load_artifact
from models.domain.measured import MeasuredLabel
from models.domain.neighbours import packed
from models.domain.task_domain import TaskDomain
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.core.engine import PredictionQuery
from service.core.explaining import Explained
from service.core.explanations.domain import NEAREST, explain_domains
from service.core.local import predict
from service.core.reading import similarity_fingerprint
from service.settings import Settings

_MOST_NAMED = 30
"""Coverages are written by label for tasks with fewer labels that have them."""
RELEASES = {name: Path("models/releases") / name for name in ("admet", "moleculenet-gcn")}


def costs(engine: ArtifactEngine, molecules: list[str], rounds: int) -> dict[str, Any]:
    """Measure CPU milliseconds a molecule."""
    domains = {task: served.domain.molecules for task, served in engine.info.domains.items()}
    largest = max(domains, key=lambda task: len(domains[task]))
    bits = [similarity_fingerprint(text) for text in molecules]
    queries = packed(np.stack(bits))
    query = PredictionQuery.of("admet", engine, list(domains), "own")
    answers = predict(query, Settings(), molecules)
    explained = Explained.checked(["domain"], engine.info, list(domains), None)

    def fingerprints() -> None:
        for text in molecules:
            similarity_fingerprint(text)

    def search(tasks: list[str]) -> None:
        for query in queries:
            for task in tasks:
                domains[task].nearest(query, NEAREST)

    cases = {
        "fingerprint": fingerprints,
        f"search, {largest}": lambda: search([largest]),
        "search, all tasks": lambda: search(list(domains)),
        "explanation, all tasks and labels": lambda: explain_domains(
            engine.info, answers, bits, explained
        ),
    }
    measured = in_turns(cases, rounds)
    nearest = [domains[largest].nearest(query, 1).similarities[0] for query in queries]
    return {
        "molecules": len(molecules),
        "largest": {largest: len(domains[largest])},
        "all": sum(map(len, domains.values())),
        "quartiles_of_similarity": np.quantile(nearest, [0.25, 0.5, 0.75]).round(3).tolist(),
        "milliseconds": {
            name: summary([1000 * value / len(molecules) for value in values], 3)
            for name, values in measured.items()
        },
    }


def summarised(labels: Sequence[str], domain: TaskDomain, size: int) -> dict[str, Any]:
    """Summarise what was measured of a task."""
    judged = {
        label: (list(own.conformal.coverage), own.conformal.holds)
        for label, own in zip(labels, domain.labels, strict=True)
        if own.conformal is not None
    }
    banded = [label for label in domain.labels if len(label.bands) > 1]
    shown = {label: shares for label, (shares, _) in judged.items()}
    return {
        "molecules": len(domain.molecules),
        "bytes": size,
        "labels": len(domain.labels),
        "with_bands": sum(bool(label.bands) for label in domain.labels),
        "with_several_bands": len(banded),
        "nearer_is_better": sum(_relative(label, -1) < _relative(label, 0) for label in banded),
        "farthest_no_better_than_base": sum(_relative(label, 0) >= 1 for label in banded),
        "with_conformal_sets": len(judged),
        "that_hold": sum(holds for _, holds in judged.values()),
        "coverage": shown if len(shown) < _MOST_NAMED else {},
    }


def _relative(label: MeasuredLabel, band: int) -> float:
    """Error of a band, in terms of that of its constant answer."""
    return label.bands[band].error / label.bands[band].error_of_base


def main() -> None:
    """Measure, print and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--molecules", type=int, default=100)
    options.add_argument("--data", type=Path, default=Path("../shared/data"))
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    found: dict[str, Any] = {"machine": machine(1), "tasks": {}}
    for name, folder in RELEASES.items():
        artifact = load_artifact(folder)
        found["tasks"][name] = {
            task: summarised(
                artifact.manifest.tasks[task].labels,
                domain,
                (folder / domain_file(task)).stat().st_size,
            )
            for task, domain in artifact.domains.items()
        }
    engine = load_engine(RELEASES["admet"], Settings(device="cpu"))
    found["cost"] = costs(
        engine, library_molecules(arguments.molecules, arguments.data), arguments.rounds
    )
    print(found["cost"])
    write_json(RESULTS / "domain.json", found)


if __name__ == "__main__":
    main()
