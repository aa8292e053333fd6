"""From a finished run on generic graphs to the artifact that the service answers from, with its
model card."""

from pathlib import Path
from typing import Any

from merging.data.links import LinkSpec
from merging.data.task_data import AnswerTask
from merging.graphs.pipeline import (
    GraphRun,
    head,
    measure_merged,
    measure_separate,
    merged,
    metrics,
)
from merging.mergers.registry import MERGERS
from merging.release.card import METRIC_TITLES
from merging.run.config import release_of
from merging.studies.markdown import markdown_table
from merging.studies.results import environment
from models.artifact import check_output, save_artifact
from models.data.schema import FeatureInput
from models.errors import ConfigError
from models.experts.expert import Expert
from models.experts.router import RouterConfig
from models.manifest import Manifest, make_manifest
from models.networks.pyg import GraphNetwork
from models.state_dict import load_tensors


def release_graphs(run: GraphRun, folder: Path, replace: bool = False) -> Manifest:
    """Train, merge and measure what is not done yet, and write the artifact; it has no adapters
    (rank 0).

    Args:
        run: the run.
        folder: of the artifact; an older version of it there is replaced in one step.
        replace: an artifact of another name or of other tasks may be replaced too.

    Raises:
        ConfigError: a task cannot be served, the merger gives each task its own network, or the
            configuration has no `release`.
        ArtifactError: the artifact may not be written there (`models.artifact.check_output`).
        DataError: see `merging.families.graphs.load_task`.
    """
    if unserved := [task for task, spec in run.config.tasks.items() if isinstance(spec, LinkSpec)]:
        raise ConfigError(
            f"tasks: got {', '.join(unserved)} of kind 'link', which no artifact answers, expected"
            " tasks on nodes or graphs"
        )
    called = release_of(run.config)
    check_output(folder, called.name, called.version, run.config.tasks, replace)
    result = merged(run)
    if result.by_task:
        method = run.config.merge.method
        raise ConfigError(
            f"got merge method {method!r}, which gives each task its own network, expected one that"
            " gives one for all"
        )
    network = GraphNetwork(run.config.network)
    load_tensors(network, result.backbone, "merged network")
    tasks = {task: _served(run, task) for task in run.config.tasks}
    manifest = make_manifest(
        name=called.name,
        version=called.version,
        backbone=run.config.network,
        rank=0,
        router=RouterConfig(),
        tasks={task: data.info for task, data in tasks.items()},
        input=FeatureInput(num_features={task: data.num_features for task, data in tasks.items()}),
        provenance=_provenance(run),
        metrics={
            "metric": metrics(run),
            "separate": measure_separate(run),
            "merged": measure_merged(run),
        },
    )
    experts = {
        task: _expert(run, task, data, head(run, task, result)) for task, data in tasks.items()
    }
    return save_artifact(folder, manifest, network, experts, model_card(manifest), replace)


def _served(run: GraphRun, task: str) -> AnswerTask:
    data = run.task(task)
    assert isinstance(data, AnswerTask)  # for the type checker: links were refused above
    return data


def _expert(run: GraphRun, task: str, data: AnswerTask, own_head: dict[str, Any]) -> Expert:
    """A task's head, and its encoder if it has one."""
    expert = Expert(
        run.config.network, 0, data.info.labels, data.level, data.target, data.num_features
    )
    load_tensors(expert.head, own_head, f"head of {task}")
    if data.encoder is not None and expert.encoder is not None:
        load_tensors(expert.encoder, data.encoder.state_dict(), f"encoder of {task}")
    return expert


def _provenance(run: GraphRun) -> dict[str, Any]:
    """Everything that the artifact was made from."""
    return {
        "config": run.config.model_dump(mode="json"),
        "seed": run.seed,
        "data_sha256": {task: run.sources(task) for task in run.config.tasks},
        "environment": environment(),
    }


def model_card(manifest: Manifest) -> str:
    """The README.md of an artifact of generic graphs."""
    config, measured = manifest.provenance["config"], manifest.metrics
    shape, method = config["network"], config["merge"]["method"]
    rows = []
    for task, info in manifest.tasks.items():
        scores = (f"{measured[way][task]:.4f}" for way in ("separate", "merged"))
        features = (
            str(manifest.input.num_features[task])
            if isinstance(manifest.input, FeatureInput)
            else ""
        )
        rows.append(
            [
                f"`{task}`",
                info.description,
                info.level,
                info.target,
                features,
                METRIC_TITLES[measured["metric"][task]],
                *scores,
            ]
        )
    head = [
        "task",
        "what",
        "level",
        "target",
        "features",
        "test score",
        "separate model",
        "this model",
    ]
    encoder = ", and an encoder for its features" if config["encoder"] != "none" else ""
    return f"""# {manifest.name} {manifest.version}

One network ({shape["kind"]}, {shape["num_layers"]} layers x {shape["hidden_dim"]}) merged from
{len(manifest.tasks)} separately trained models; each task keeps its own head{encoder}.
There are no adapters.

{markdown_table(head, rows)}

A node or graph is given as numbers: each task expects
as many features for a node as the table says, in the order of its training data.

## How it was made

Setting `{config["setting"]}`: {config["description"]}. Seed {manifest.provenance["seed"]}.
Merged by {method} ({MERGERS[method].paper}), options
{config["merge"]["options"] or "as published"}.
The whole configuration, library versions and checksums of the data are in `manifest.json`.

## Limits

The answers are about graphs like those of the training data; on a graph that was seen in training
they are partly remembered.
For a citation graph the features are a bag of words in the data set's own vocabulary.
"""
