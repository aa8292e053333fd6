"""The commands of `gmerging`: they check arguments, call the library and print the result. Their
docstrings are the help texts."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from merging.cli.building import build_stages, in_parts
from merging.drawing.figures import draw_figures
from merging.drawing.plan import draw_plan
from merging.mergers.registry import MERGERS
from merging.planning.plan import (
    group_run,
    make_plan,
    plan_settings,
    planned_runs,
    read_plan,
    write_plan,
)
from merging.release.domains import add_domains, summary
from merging.release.drugs import DrugList, add_drugs, check_drugs
from merging.release.extension import add_tasks, check_addition, remove_tasks, screen
from merging.release.forests import add_forests, check_forests
from merging.release.inspection import describe, inspect
from merging.release.labels import check_description, describe_labels
from merging.release.release import check_release, needs_single_backbone, release, release_stages
from merging.release.structures import write_domain_structures
from merging.run.config import load_config
from merging.run.forests import forest
from merging.run.run import Run
from merging.run.stage import Stage
from merging.run.stages import (
    adapters,
    check_adapters,
    check_molecules,
    check_single_backbone,
    merged,
    teacher,
)
from merging.studies import (
    boards,
    forest_experts,
    gffmerge,
    gnnmerge,
    graph_generalisation,
    gw_smm,
    one_pass,
    overlaps,
    pretrained_forces,
    pretrained_forces_tables,
)
from merging.studies.experts import supervised, tied
from merging.studies.experts.config import load_experts_config
from merging.studies.experts.study import run_study as run_experts
from merging.studies.experts.summary import expert_tables
from merging.studies.experts.supervised_tables import supervised_tables
from merging.studies.experts.tied_tables import tied_tables
from merging.studies.gffmerge_tables import average_errors_table
from merging.studies.gw_smm_analysis import gw_smm_tables
from merging.studies.markdown import percent
from merging.studies.report import (
    ablate,
    compare,
    compare_settings,
    comparison_table,
    summary_table,
)
from merging.training.instance_discrimination import InstanceConfig, pretrain_network
from merging.training.pretraining import load_pretrain_config, pretrain
from models.artifact import load_components, read_manifest
from models.errors import ConfigError, DataError
from models.manifest import Manifest
from models.released import find_artifact

PLAIN_RESULTS = Path("neighbours/generic-graphs.json")
"""Results file of models that are not of molecules, below the folder of results."""
_SEEDS = 2**31


def _set_up(arguments: argparse.Namespace) -> torch.device:
    """Set the number of torch threads and return the device, the CPU where a command has no
    `--device`. Raises ConfigError: a number is out of range."""
    for name in ("threads", "processes"):
        if getattr(arguments, name, 1) < 1:
            raise ConfigError(f"--{name}: got {getattr(arguments, name)}, expected at least 1")
    drawn = getattr(arguments, "seeds", [getattr(arguments, "seed", 0)])
    if wrong := [value for value in drawn if not 0 <= value < _SEEDS]:
        raise ConfigError(f"--seed: got {wrong[0]}, expected 0 to {_SEEDS - 1}")
    torch.set_num_threads(arguments.threads)
    chosen: torch.device = getattr(arguments, "device", torch.device("cpu"))
    return chosen


def _print_artifact(manifest: Manifest, folder: Path) -> None:
    print(f"{manifest.name} {manifest.version}: {len(manifest.tasks)} tasks in {folder}")


def _run(arguments: argparse.Namespace, seed: int | None = None) -> Run:
    device = _set_up(arguments)
    seed = arguments.seed if seed is None else seed
    config, workers = load_config(arguments.config), arguments.threads
    run = Run(config, seed, arguments.data, arguments.work, device, workers)
    _ = run.initial_fingerprint  # Downloads a published checkpoint, before any work.
    return run


def _seeds(arguments: argparse.Namespace) -> list[int]:
    return list(dict.fromkeys(arguments.seeds))


def _runs(arguments: argparse.Namespace) -> dict[str, Run]:
    """One run by group of the plan; without a plan the whole run, under an empty name."""
    run = _run(arguments)
    return planned_runs(run, read_plan(arguments.plan)) if arguments.plan else {"": run}


def _check_data(run: Run, tasks: Sequence[str]) -> None:
    """Read and describe the data of all tasks, so that errors in them come before any training."""
    for task in tasks:
        print(run.dataset(task).summary)


def _train(
    arguments: argparse.Namespace,
    run: Run,
    stages: dict[str, Stage],
    description: str,
    summary: Callable[[dict[str, Any]], str],
) -> None:
    """Make the stages of tasks, and print a summary of every record."""
    build_stages(arguments, run, list(stages.values()), description)
    for task, stage in stages.items():
        record = run.result(stage).record
        print(f"{task}: {summary(record)}, {record['seconds']} s")


def _tasks(arguments: argparse.Namespace, run: Run) -> Sequence[str]:
    unknown = sorted(set(arguments.tasks or ()) - set(run.tasks))
    if unknown:
        raise ConfigError(
            f"--tasks: got {', '.join(unknown)}, expected names among {', '.join(run.tasks)}"
        )
    return arguments.tasks or run.tasks


def pretrain_backbone(arguments: argparse.Namespace) -> None:
    """Pre-train a network without labels: of molecules by context or edge prediction or
    descriptors, of other graphs by instance discrimination.

    Examples:
        gmerging pretrain --config gin_contextpred.yaml
    """
    device, config = _set_up(arguments), load_pretrain_config(arguments.config)
    folders, threads = (arguments.data, arguments.work), arguments.threads
    if isinstance(config, InstanceConfig):
        path = pretrain_network(config, *folders, arguments.seed, device)
    else:
        path = pretrain(config, *folders, arguments.seed, device, threads)
    print(f"pre-trained weights: {path}")


@in_parts
def finetune(arguments: argparse.Namespace) -> None:
    """Train one model per task.

    Examples:
        gmerging finetune --config mine.yaml --tasks bace bbbp --processes 2
    """
    run = _run(arguments)
    tasks = _tasks(arguments, run)
    _check_data(run, tasks)
    stages = {task: teacher(run, task) for task in tasks}

    def summary(record: dict[str, Any]) -> str:
        best = f"best epoch {record['best_epoch']} of {record['epochs']}"
        return best if record["settings"].get("keep") != "last" else f"{best}, kept the last"

    _train(arguments, run, stages, "fine-tuning", summary)


def plan_groups(arguments: argparse.Namespace) -> None:
    """Choose which models to merge with each other, by distances between them (no labels); write
    the plan file and figures.

    Examples:
        gmerging plan --config mine.yaml --group-size 3 --output plan.json
    """
    names = ("metric", "variant", "restarts", "group_size")
    settings = plan_settings(**{name: getattr(arguments, name) for name in names})
    run = _run(arguments)
    check_molecules(run)
    _check_data(run, run.tasks)
    plan = make_plan(run, settings)
    write_plan(plan, arguments.output)
    for name, group in plan.groups.items():
        print(f"{name}: {', '.join(group)}")
    for path in [arguments.output, *draw_plan(plan, arguments.output.with_suffix(""))]:
        print(f"wrote {path}")


def merge_models(arguments: argparse.Namespace) -> None:
    """Merge the tasks' models.

    Examples:
        gmerging merge --config mine.yaml
        gmerging merge --config mine.yaml --plan plan.json
    """
    for run in _runs(arguments).values():
        _check_data(run, run.tasks)
        record = run.result(merged(run)).record
        models, method = f"{len(record['tasks'])} models", record["method"]
        merger = f"{method} ({MERGERS[method].paper}), {record['options'] or 'as published'}"
        print(f"merged {models} by {merger}: {', '.join(record['tasks'])}")


@in_parts
def train_adapters(arguments: argparse.Namespace) -> None:
    """Train each task's adapters on the merged backbone (no labels).

    Examples:
        gmerging train-adapters --config mine.yaml --processes 2
    """
    tasks, runs = _tasks(arguments, _run(arguments)), _runs(arguments)
    for run in runs.values():
        check_adapters(run)
        _check_data(run, run.tasks)
    of_task = {task: run for run in runs.values() for task in run.tasks if task in tasks}
    stages = {task: adapters(run, task) for task, run in of_task.items()}

    def summary(record: dict[str, Any]) -> str:
        loss = record["loss"]
        return f"loss {loss[0]:.4f} -> {loss[-1]:.4f} in {record['epochs']} epochs"

    _train(arguments, next(iter(runs.values())), stages, "training adapters", summary)


@in_parts
def release_models(arguments: argparse.Namespace) -> None:
    """Train, merge and write the artifact that the service loads.

    Examples:
        gmerging release --config mine.yaml --output my-models/mine
        gmerging release --config mine.yaml --plan plan.json --output my-models
    """
    runs = _runs(arguments)
    first, folders = next(iter(runs.values())), {}
    for group, run in runs.items():
        folders[group] = _release_folder(arguments, group, run)
        check_release(run, folders[group], arguments.replace)
    for run in runs.values():
        _check_data(run, run.tasks)
    from_merged = [run for run in runs.values() if needs_single_backbone(run)]
    merges = [merged(run) for run in from_merged]
    build_stages(arguments, first, merges, "models and merge", more=True)
    for run in from_merged:
        check_single_backbone(run)  # Refuse before hours of training what cannot be served.
    stages = [stage for run in runs.values() for stage in release_stages(run)]
    build_stages(arguments, first, stages, "release")
    for group, run in runs.items():
        _print_artifact(release(run, folders[group], arguments.replace), folders[group])


def _release_folder(arguments: argparse.Namespace, group: str, run: Run) -> Path:
    output: Path | None = arguments.output
    return output / group if output else Path("models/releases") / run.config.require_release().name


@in_parts
def compare_methods(arguments: argparse.Namespace) -> None:
    """Evaluate every method of the configuration on several seeds; write results files, a table
    and figures.

    Examples:
        gmerging compare --config mine.yaml --seeds 0 1 2 --processes 2
    """
    runs = [_run(arguments, seed) for seed in _seeds(arguments)]
    _check_data(runs[0], runs[0].tasks)
    build = partial(build_stages, arguments, runs[0])
    if not runs[0].family.of_molecules:
        content = compare_settings(runs, arguments.results / PLAIN_RESULTS, build)
        print(comparison_table(content["settings"]))
        return
    summary = compare(runs, arguments.results, build)
    _draw(arguments.results / summary["setting"])
    about = "test ROC-AUC in percent (or as a column says), stored statistics, seeds"
    print(f"{about} {summary['seeds']}\n{summary_table(summary)}")


@in_parts
def ablate_settings(arguments: argparse.Namespace) -> None:
    """Evaluate the configuration's ablations and sweeps on one seed; write the results file and
    figures.

    Examples:
        gmerging ablate --config mine.yaml --seed 1
    """
    run = _run(arguments)
    check_molecules(run)
    _check_data(run, run.tasks)
    content = ablate(run, arguments.results, partial(build_stages, arguments, run))
    folder = arguments.results / run.config.setting
    if (folder / "summary.json").is_file():
        _draw(folder)
    for group, rows in content["groups"].items():
        for name, row in rows.items():
            valid, test = (percent(row["stored"][key]) for key in ("valid_average", "average"))
            print(f"{group:16} {name:24} validation {valid}  test {test}")


def redraw(arguments: argparse.Namespace) -> None:
    """Draw every figure again from the results files.

    Examples:
        gmerging figures --results results
    """
    folders = sorted(path.parent for path in arguments.results.glob("*/summary.json"))
    if not folders:
        problem = f"got no */summary.json in {arguments.results}"
        raise DataError(f"{problem}, expected the results of `gmerging compare`")
    for folder in folders:
        _draw(folder)


def _draw(folder: Path) -> None:
    for path in draw_figures(folder):
        print(f"drew {path}")


def add_task(arguments: argparse.Namespace) -> None:
    r"""Add the tasks of a configuration to a finished artifact; its backbone and other adapters
    stay as they are.

    Examples:
        gmerging add-task --config solubility.yaml --artifact my-models/mine \
            --output my-models/mine
    """
    run = _run(arguments)
    files = find_artifact(arguments.artifact), arguments.output, arguments.replace
    check_addition(run, *files)
    _check_data(run, run.tasks)
    _print_artifact(add_tasks(run, *files), arguments.output)


@in_parts
def add_forest(arguments: argparse.Namespace) -> None:
    r"""Add trees on fingerprints to the tasks of a finished artifact, which answer beside the
    network where validation data say so.

    Examples:
        gmerging add-forests --config mine.yaml --tasks bace --artifact my-models/mine \
            --output with-forests
    """
    run = _run(arguments)
    tasks = tuple(_tasks(arguments, run))
    files = find_artifact(arguments.artifact), tasks, arguments.output, arguments.replace
    check_forests(run, *files)
    stages = {task: forest(run, task) for task in tasks}

    def summary(record: dict[str, Any]) -> str:
        return f"{record['kind']} trees on {' + '.join(record['inputs'])}"

    _train(arguments, run, stages, "forests", summary)
    _print_artifact(add_forests(run, *files), arguments.output)


def describe_labels_of(arguments: argparse.Namespace) -> None:
    """Describe the labels of a finished artifact: what they mean, how many molecules have them, and
    how well each is predicted on the test molecules. Its weights stay as they are.

    Examples:
        gmerging describe-labels --config admet.yaml --artifact my/admet --output described
    """
    manifest, _ = read_manifest(arguments.artifact)
    run = _run(arguments, manifest.provenance.get("seed", 0))
    files = arguments.artifact, arguments.output, arguments.replace
    check_description(run, *files)
    _print_artifact(describe_labels(run, *files), arguments.output)


def add_drugs_of(arguments: argparse.Namespace) -> None:
    r"""Predict for a list of approved drugs, and add the quantiles of the answers to a finished
    artifact: with them the service says where an answer lies among drugs. Its weights stay as they
    are, and no structure of the list goes into the artifact.

    Examples:
        gmerging add-drugs --config admet.yaml --artifact my/admet --output my/admet \
            --molecules drugs.csv --source "ChEMBL 33" --date 2023-10-18 --terms "CC BY-SA 3.0"
    """
    artifact = find_artifact(arguments.artifact)
    manifest, _ = read_manifest(artifact)
    run = _run(arguments, manifest.provenance.get("seed", 0))
    files = arguments.output, arguments.replace
    check_drugs(run, artifact, *files)
    described = arguments.source, arguments.date, arguments.terms
    manifest = add_drugs(run, artifact, DrugList(arguments.molecules, *described), *files)
    assert manifest.drugs is not None
    counts = f"{manifest.drugs.molecules} drugs, {manifest.drugs.in_training} of them in training"
    print(f"{counts}; {manifest.drugs.unreadable} could not be read")
    _print_artifact(manifest, arguments.output)


def add_domain(arguments: argparse.Namespace) -> None:
    r"""Add to the tasks of a finished artifact what says how far to trust an answer: hashed
    fingerprints of the training molecules, and errors by similarity to them. Its weights stay as
    they are.

    Examples:
        gmerging add-domain --config mine.yaml --artifact my-models/mine \
            --output my-models/mine
    """
    artifact = find_artifact(arguments.artifact)
    manifest, _ = read_manifest(artifact)
    run = _run(arguments, manifest.provenance.get("seed", 0))
    tasks = arguments.tasks or tuple(manifest.tasks)
    manifest = add_domains(run, artifact, tasks, arguments.output, arguments.replace)
    domains = load_components(arguments.output).domains
    for task in tasks:
        print(*summary(task, manifest.tasks[task].labels, domains[task]), sep="\n")
    _print_artifact(manifest, arguments.output)


def domain_structures(arguments: argparse.Namespace) -> None:
    """Write a file with structures and measured values of the training molecules of an artifact,
    for a service that may show them (GMERGING_STRUCTURES). Tasks whose terms do not allow it are
    left out.

    Examples:
        gmerging domain-structures --config admet.yaml --artifact admet --output structures.db
    """
    artifact = find_artifact(arguments.artifact)
    manifest, _ = read_manifest(artifact)
    run = _run(arguments, manifest.provenance.get("seed", 0))
    counts = write_domain_structures(run, artifact, arguments.output)
    for task in manifest.domains:
        not_shown = "left out, its terms do not allow it"
        print(f"{task}: {f'{counts[task]} molecules' if task in counts else not_shown}")
    print(f"wrote {arguments.output}")


def remove_task(arguments: argparse.Namespace) -> None:
    """Write an artifact without some of its tasks.

    Examples:
        gmerging remove-task --tasks bace --artifact moleculenet-gcn --output smaller
    """
    artifact, output = find_artifact(arguments.artifact), arguments.output
    manifest = remove_tasks(artifact, arguments.tasks, output, arguments.replace)
    _print_artifact(manifest, arguments.output)


def screen_artifact(arguments: argparse.Namespace) -> None:
    """Limit the experts that each task's mixture considers, for artifacts of many tasks.

    Examples:
        gmerging screen-experts --molecules library.smi --artifact my-models/mine --output screened
    """
    settings = arguments.candidates, arguments.output, arguments.replace
    manifest = screen(find_artifact(arguments.artifact), arguments.molecules, *settings)
    counts = manifest.provenance["screened"]
    unreadable = f"{counts['unreadable']} could not be read"
    print(f"screened with {counts['molecules']} molecules, {unreadable}")
    _print_artifact(manifest, arguments.output)


def inspect_artifact(arguments: argparse.Namespace) -> None:
    """Verify an artifact and print what it contains.

    Examples:
        gmerging inspect my-models/mine
        gmerging inspect moleculenet-gcn --json
    """
    folder = find_artifact(arguments.artifact)
    print(json.dumps(inspect(folder), indent=2) if arguments.json else describe(folder))


def study_gnnmerge(arguments: argparse.Namespace) -> None:
    """Compare GNNMerge with other mergers on Cora, Citeseer and MoleculeNet.

    Examples:
        gmerging study gnnmerge --seconds 3600
    """
    _set_up(arguments)
    folders = arguments.data, arguments.work
    content = gnnmerge.run_study(*folders, arguments.seconds, arguments.results)
    print(gnnmerge.speed_table(content))


def study_gffmerge(arguments: argparse.Namespace) -> None:
    """Compare the ways to merge force fields.

    Examples:
        gmerging study gffmerge --config md17.yaml --seeds 0 1 2
    """
    _set_up(arguments)
    config, work = load_config(arguments.config), arguments.work / "gffmerge"
    entry = gffmerge.run_study(config, arguments.data, work, _seeds(arguments), arguments.results)
    print(average_errors_table(entry))


def study_gffmerge_pretrained(arguments: argparse.Namespace) -> None:
    """Compare the ways to merge force fields that start from one pre-trained network.

    Stopped, it goes on where it was; the results are written after every method.

    Examples:
        gmerging study gffmerge-pretrained --config md17_chgnet.yaml --seeds 0 1
    """
    _set_up(arguments)
    config, work = load_config(arguments.config), arguments.work / "gffmerge"
    settings = arguments.data, work, _seeds(arguments), arguments.results
    entry = pretrained_forces.run_study(config, *settings)
    print(pretrained_forces_tables.errors_table(entry))


def study_gw_smm(arguments: argparse.Namespace) -> None:
    """Test whether distances between models predict which merges hurt.

    Examples:
        gmerging study gw-smm --config gcn_supervised_contextpred.yaml --seeds 0 1 2 --both 0
        gmerging study gw-smm --config moleculeace_proteins.yaml --seeds 1 --ways 5
    """
    runs = [_run(arguments, seed) for seed in _seeds(arguments)]
    content = gw_smm.run_study(runs, arguments.both, arguments.results, arguments.ways)
    print(gw_smm_tables(content)["groups"])


def study_graphs(arguments: argparse.Namespace) -> None:
    """Compare mergers on nine tasks of graphs without features (GCC's data sets).

    Examples:
        gmerging study graphs --seeds 0 1 2
    """
    runs = [_run(arguments, seed) for seed in _seeds(arguments)]
    _check_data(runs[0], runs[0].tasks)
    build = partial(build_stages, arguments, runs[0])
    content = graph_generalisation.run_study(runs, arguments.results, build)
    print(graph_generalisation.accuracies_table(content))


def study_forests(arguments: argparse.Namespace) -> None:
    """Measure trees on fingerprints beside the networks of finished artifacts.

    Examples:
        gmerging study forests --artifacts my-models/mine --seeds 0
    """
    seeds = _seeds(arguments)
    run = _run(arguments, seeds[0])
    tasks = _tasks(arguments, run)
    files = arguments.artifacts, seeds, tasks, arguments.results
    print(forest_experts.gains_table(forest_experts.run_study(run, *files)))


def study_experts(arguments: argparse.Namespace) -> None:
    """Compare routing, ensemble and merged expert in a mixture of graph experts (KDEM, PPEM).

    Examples:
        gmerging study experts --config six_domains.yaml --seeds 0 1 2
    """
    _set_up(arguments)
    config, folders = load_experts_config(arguments.config), (arguments.data, arguments.work)
    content = run_experts(config, *folders, _seeds(arguments), arguments.results)
    print(expert_tables(content))


def study_supervised_experts(arguments: argparse.Namespace) -> None:
    """Compare routing, ensemble and merged expert among the models of other targets.

    Examples:
        gmerging study supervised-experts --config moleculeace_short.yaml --seed 1
    """
    content = supervised.run_study(_run(arguments), arguments.results)
    print(supervised_tables(content)["against_first"])


def study_tied_adapters(arguments: argparse.Namespace) -> None:
    """Tie the graph adapters of a shared stream together during joint alignment (KDEM, PPEM), and
    compare their ensemble with one merged adapter.

    Examples:
        gmerging study tied-adapters --config moleculeace_tied.yaml --seed 1
    """
    run, seeds = _run(arguments), list(dict.fromkeys(arguments.alignment_seeds))
    for table in tied_tables(tied.run_study(run, seeds, arguments.results)).values():
        print(table, end="\n\n")


def study_one_pass(arguments: argparse.Namespace) -> None:
    """Compare variants of joint alignment: one network that answers all tasks in one pass.

    Examples:
        gmerging study one-pass --seeds 0 1 --variants base
    """
    runs = [_run(arguments, seed) for seed in _seeds(arguments)]
    check_molecules(runs[0])
    if arguments.teachers:
        config = one_pass.taught_by(runs[0].config, arguments.teachers)
        runs = [replace(run, config=config) for run in runs]
    one_pass.variant_runs(runs[0], arguments.variants)  # Refuse before hours of training.
    _check_data(runs[0], runs[0].tasks)
    build = partial(build_stages, arguments, runs[0])
    content = one_pass.run_study(runs, arguments.variants, arguments.results, build)
    print(one_pass.one_pass_tables(content)["test"])


@in_parts
def study_scores(arguments: argparse.Namespace) -> None:
    """Measure methods by the main metrics of their tasks, in the units of the labels, and add them
    to a file of scores.

    Examples:
        gmerging study scores --config admet.yaml --methods finetuned --seeds 0 1
    """
    runs = [_run(arguments, seed) for seed in _seeds(arguments)]
    tasks = _tasks(arguments, runs[0])
    if arguments.group:
        group = tuple(tasks), runs[0].config.merge, arguments.group
        runs = [group_run(run, *group) for run in runs]
    for run in runs:
        _check_data(run, tasks)
    build = partial(build_stages, arguments, runs[0])
    found = boards.collect_scores(runs, arguments.methods, tasks, arguments.results, build)
    for method in arguments.methods:
        for task in tasks:
            values = (f"{found.methods[method][task][run.seed]:.3f}" for run in runs)
            print(f"{method:12} {task:32} {found.metrics[task]:8} {' '.join(values)}")


def study_admet_boards(arguments: argparse.Namespace) -> None:
    """Compare a file of scores with the leaderboards of TDC's ADMET benchmark group.

    Examples:
        gmerging study admet-boards --scores results/admet/scores.json --boards boards.json
    """
    _set_up(arguments)
    content = boards.run_study(arguments.scores, arguments.boards, arguments.results)
    print(boards.boards_tables(content))


def study_overlaps(arguments: argparse.Namespace) -> None:
    """Count the molecules that a task trains on and another is tested on, for all pairs.

    Examples:
        gmerging study overlaps --config admet.yaml
    """
    run = _run(arguments)
    overlaps.run_study(run, arguments.results)
    print(f"wrote {arguments.results / run.config.setting}/overlaps.json and overlaps.md")
