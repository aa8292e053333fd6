"""Cost of the explanations `drugs` and `alerts`, and of a search by SMARTS, beside reading.

    python -m benchmarks.drugs_and_alerts --artifact my/moleculenet-gcn --data ../shared/data

CPU milliseconds a molecule of the screening library, in turns; the artifact has a table of drugs.
Writes `results/drugs_and_alerts.json`.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.measuring import RESULTS, in_turns, machine
from benchmarks.molecules import library_molecules
from merging.data.files import write_json
from models.artifact import load_components
from models.data.alerts import structural_alerts
from models.data.smiles import featurize_all
from models.data.substructure import find_substructure

SMARTS = "[NX3;H2,H1;!$(NC=O)]"
"""Primary and secondary amines."""


def main() -> None:
    """Measure, print and write the costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--molecules", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    smiles = library_molecules(arguments.molecules, arguments.data)
    table = load_components(arguments.artifact).drugs
    if table is None:
        parser.error(f"got {arguments.artifact} without drugs, expected `gmerging add-drugs`")
    answers = {
        task: np.random.default_rng(0).uniform(size=(len(smiles), len(quantiles)))
        for task, quantiles in table.quantiles.items()
    }
    before, started = _memory_mib(), time.process_time()
    structural_alerts("C")
    first = {"seconds": time.process_time() - started, "mib": _memory_mib() - before}
    seconds = in_turns(
        {
            "read": lambda: featurize_all(smiles),
            "drugs": lambda: [table.percentiles(task, own) for task, own in answers.items()],
            "alerts": lambda: list(map(structural_alerts, smiles)),
            "match": lambda: [find_substructure(text, SMARTS) for text in smiles],
        },
        arguments.rounds,
    )
    cost = {name: 1e3 * statistics.median(took) / len(smiles) for name, took in seconds.items()}
    labels = sum(map(len, table.quantiles.values()))
    found = {
        "machine": machine(1),
        "molecules": len(smiles),
        "labels": labels,
        "milliseconds_a_molecule": {name: round(own, 4) for name, own in cost.items()},
        "catalogues": {name: round(own, 3) for name, own in first.items()},
        "table_bytes": len(table.to_bytes()),
    }
    print(found)
    write_json(RESULTS / "drugs_and_alerts.json", found)


def _memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
