"""The structures of the training molecules in an artifact's applicability domains, for an operator
who has the data."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from merging.release.labels import check_same_data, check_same_tasks
from merging.run.domains import canonical
from merging.run.run import Run
from models.artifact import domain_file, load_components
from models.domain.structures import Structure, write_structures
from models.domain.task_domain import TaskDomain
from models.errors import ConfigError


def write_domain_structures(run: Run, artifact: Path, output: Path) -> dict[str, int]:
    """Write a file with the structures and the measured values of the training molecules of those
    tasks of an artifact whose terms allow to show them (`DomainInfo.may_show`).

    Args:
        run: its configuration describes the data of these tasks.
        artifact: a folder with applicability domains.
        output: the file.

    Returns:
        Number of molecules, by task.

    Raises:
        ConfigError: there is no such task, or the configuration has other tasks, labels or data
            files than the artifact was made from.
        DataError: the data of a task are missing or have changed.
        ArtifactError: the artifact is damaged.
        OSError: the file cannot be written.
    """
    components = load_components(artifact)
    manifest = components.manifest
    tasks = [task for task, info in manifest.domains.items() if info.may_show]
    if not tasks:
        got = f"{artifact}: got no task with an applicability domain whose structures may be shown"
        raise ConfigError(f"{got}, expected one (`gmerging add-domain`)")
    check_same_tasks(run, manifest, tasks)
    check_same_data(run, manifest, tasks)
    digests = {task: manifest.files[domain_file(task)] for task in tasks}
    found = {digests[task]: _structures(run, task, components.domains[task]) for task in tasks}
    counts = write_structures(output, found)
    return {task: counts[digest] for task, digest in digests.items()}


def _structures(run: Run, task: str, domain: TaskDomain) -> Iterator[tuple[int, Structure]]:
    """Yield the molecules of a domain, with their lines."""
    data, family = run.dataset(task), run.family
    molecules = family.source_molecules(run.config, data, run.folders)
    columns = family.label_columns(data.labels, data.info)
    wanted = set(domain.molecules.rows.tolist())
    for k, (line, smiles) in enumerate(molecules.items()):
        if line in wanted:
            values = {
                label: float(column[k])
                for label, column in zip(data.info.labels, columns, strict=True)
                if not np.isnan(column[k])
            }
            yield line, Structure(canonical(smiles), values)
