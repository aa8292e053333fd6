"""From a finished study of force fields to the artifact that the service answers from, with its
model card."""

from pathlib import Path

from merging.force_fields.pieces import Study
from merging.studies.gffmerge import release_force_field
from merging.studies.markdown import markdown_table
from merging.studies.results import environment
from models.artifact import check_output, save_artifact
from models.data.schema import AtomsInput
from models.experts.router import RouterConfig
from models.manifest import Manifest, make_manifest
from models.task import TaskInfo


def release_atoms(study: Study, folder: Path, replace: bool = False) -> Manifest:
    """Train what is not trained yet, merge it (closed form with slopes, own heads, heads tuned),
    and write the artifact.

    Args:
        study: configuration, seed, data folder and work folder.
        folder: of the artifact; an older version of it there is replaced in one step.
        replace: an artifact of another name or of other tasks may be replaced too.

    Raises:
        ArtifactError: the artifact may not be written there (`models.artifact.check_output`).
        DataError: see `merging.families.force_fields.load_frames`.
    """
    source = study.config.source
    called, version = f"{source}-schnet", "0.1.0"
    check_output(folder, called, version, study.config.tasks, replace)
    shape, network, experts, record = release_force_field(study)
    about = f"potential energy and forces of {{}}, {source}"
    elements = {task: expert.elements.nonzero().flatten() for task, expert in experts.items()}
    manifest = make_manifest(
        name=called,
        version=version,
        backbone=shape,
        rank=0,
        router=RouterConfig(),
        tasks={
            task: TaskInfo(
                labels=("energy",),
                description=about.format(task),
                target="energy_and_forces",
            )
            for task in experts
        },
        input=AtomsInput(
            elements={task: tuple(known.tolist()) for task, known in elements.items()}
        ),
        provenance={**record, "environment": environment()},
        metrics=dict(record["test"]),
    )
    return save_artifact(folder, manifest, network, experts, model_card(manifest), replace)


def model_card(manifest: Manifest) -> str:
    """The README.md of an artifact of force fields."""
    settings, errors = manifest.provenance["settings"], manifest.metrics
    rows = [
        [f"`{task}`", info.description, *(f"{value:.1f}" for value in errors[task].values())]
        for task, info in manifest.tasks.items()
    ]
    return f"""# {manifest.name} {manifest.version}

The interaction blocks of SchNet, merged in closed form from {len(manifest.tasks)} force fields
that were trained apart
({manifest.provenance["method"]}; seed {manifest.provenance["seed"]}). Each task keeps its
own atom embeddings, head and scale of energies.
Mean absolute errors on test frames, energies in meV, forces in meV / Angstrom:

{markdown_table(["task", "what", *next(iter(errors.values()))], rows)}

## How it was made

`docs/gffmerge.md`. The whole configuration and library versions are in
`manifest.json`: {settings["source"]} of the data folder.

## Limits

Small networks, short trainings, one seed: a demonstration of merging, not a potential to
simulate with. A task answers for structures like its own frames (one molecule each);
other elements are refused, other molecules of the same elements are
not, and their answers mean nothing.
"""
