"""What the commands of `gmerging` do: check, call, tell. No logic lives here."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from merging.drawing.figures import draw_figures
from merging.drawing.plan import draw_plan
from merging.mergers.registry import MERGERS
from merging.planning.plan import make_plan, plan_settings, planned_runs, read_plan, write_plan
from merging.release.extension import add_tasks, check_addition, remove_tasks, screen
from merging.release.inspection import describe
from merging.release.release import check_release, release, release_stages
from merging.run.config import load_config
from merging.run.run import Run
from merging.run.stage import Stage
from merging.run.stages import adapters, check_adapters, check_shared, merged, teacher
from merging.studies import gffmerge, gnnmerge, gw_smm
from merging.studies.experts.config import load_experts_config
from merging.studies.experts.study import run_study as run_experts
from merging.studies.experts.summary import expert_tables
from merging.studies.gffmerge_tables import average_errors_table
from merging.studies.gw_smm_analysis import gw_smm_tables
from merging.studies.markdown import percent
from merging.studies.report import (
    ablate,
    compare,
    compare_without_adapters,
    comparison_table,
    summary_table,
)
from merging.training.pretraining import load_pretrain_config, pretrain
from models.errors import ConfigError, DataError
from models.manifest import Manifest

PLAIN_RESULTS = Path("neighbours/generic-graphs.json")
"""Below the folder of results, those of models without adapters."""


_SEEDS = 2**31


def _set_up(arguments: argparse.Namespace) -> torch.device:
    """Give torch its threads; returns the device, the CPU where a command has no choice. Raises
    ConfigError: a number is out of range."""
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
    """What was written, and where."""
    print(f"{manifest.name} {manifest.version}: {len(manifest.tasks)} tasks in {folder}")


def _run(arguments: argparse.Namespace, seed: int | None = None) -> Run:
    device = _set_up(arguments)
    seed = arguments.seed if seed is None else seed
    config, workers = load_config(arguments.config), arguments.threads
    run = Run(config, seed, arguments.data, arguments.work, device, workers)
    _ = run.origin  # once, and before any work: what is published is fetched here
    return run


def _runs(arguments: argparse.Namespace) -> dict[str, Run]:
    """The run; with a plan, by group a run of its tasks."""
    run = _run(arguments)
    return planned_runs(run, read_plan(arguments.plan)) if arguments.plan else {"": run}


def _check_data(run: Run, tasks: Sequence[str]) -> None:
    """Read the data of all tasks before anything is trained, and tell what was read as what."""
    for task in tasks:
        print(run.dataset(task).summary)


def _build(
    arguments: argparse.Namespace, run: Run, stages: Sequence[Stage], description: str
) -> None:
    run.build(stages, description, arguments.processes, arguments.threads)


def _tasks(arguments: argparse.Namespace, run: Run) -> Sequence[str]:
    unknown = sorted(set(arguments.tasks or ()) - set(run.tasks))
    if unknown:
        raise ConfigError(
            f"--tasks: got {', '.join(unknown)}, expected names among {', '.join(run.tasks)}"
        )
    return arguments.tasks or run.tasks


def pretrain_backbone(arguments: argparse.Namespace) -> None:
    """`pretrain`."""
    device, config = _set_up(arguments), load_pretrain_config(arguments.config)
    folders, threads = (arguments.data, arguments.work), arguments.threads
    path = pretrain(config, *folders, arguments.seed, device, threads)
    print(f"pre-trained weights: {path}")


def finetune(arguments: argparse.Namespace) -> None:
    """`finetune`."""
    run = _run(arguments)
    tasks = _tasks(arguments, run)
    _check_data(run, tasks)
    stages = {task: teacher(run, task) for task in tasks}
    _build(arguments, run, list(stages.values()), "fine-tuning")
    for task, stage in stages.items():
        record = run.result(stage).record
        epochs = f"best epoch {record['best_epoch']} of {record['epochs']}"
        print(f"{task}: {epochs}, {record['seconds']} s")


def plan_groups(arguments: argparse.Namespace) -> None:
    """`plan`."""
    given = ("metric", "variant", "restarts", "group_size")
    settings = plan_settings(**{name: getattr(arguments, name) for name in given})
    run = _run(arguments)
    check_adapters(run)
    _check_data(run, run.tasks)
    plan = make_plan(run, settings)
    write_plan(plan, arguments.output)
    for name, group in plan.groups.items():
        print(f"{name}: {', '.join(group)}")
    for path in [arguments.output, *draw_plan(plan, arguments.output.with_suffix(""))]:
        print(f"wrote {path}")


def merge_models(arguments: argparse.Namespace) -> None:
    """`merge`."""
    for run in _runs(arguments).values():
        _check_data(run, run.tasks)
        record = run.result(merged(run)).record
        models, method = f"{len(record['tasks'])} models", record["method"]
        how = f"{method} ({MERGERS[method].paper}), {record['options'] or 'as published'}"
        print(f"merged {models} by {how}: {', '.join(record['tasks'])}")


def train_adapters(arguments: argparse.Namespace) -> None:
    """`train-adapters`."""
    tasks, runs = _tasks(arguments, _run(arguments)), _runs(arguments)
    for run in runs.values():
        check_adapters(run)
        _check_data(run, run.tasks)
    of_task = {task: run for run in runs.values() for task in run.tasks if task in tasks}
    stages = {task: adapters(run, task) for task, run in of_task.items()}
    first = next(iter(runs.values()))
    _build(arguments, first, list(stages.values()), "training adapters")
    for task, stage in stages.items():
        record = first.result(stage).record
        losses = f"loss {record['loss'][0]:.4f} -> {record['loss'][-1]:.4f}"
        print(f"{task}: {losses} in {record['epochs']} epochs, {record['seconds']} s")


def release_models(arguments: argparse.Namespace) -> None:
    """`release`."""
    runs = _runs(arguments)
    first, folders = next(iter(runs.values())), {}
    for group, run in runs.items():
        folders[group] = _release_folder(arguments, group, run)
        check_release(run, folders[group], arguments.replace)
    for run in runs.values():
        _check_data(run, run.tasks)
    _build(arguments, first, [merged(run) for run in runs.values()], "models and merge")
    for run in runs.values():
        check_shared(run)  # before hours of training: what cannot be served is refused
    stages = [stage for run in runs.values() for stage in release_stages(run)]
    _build(arguments, first, stages, "release")
    for group, run in runs.items():
        _print_artifact(release(run, folders[group], arguments.replace), folders[group])


def _release_folder(arguments: argparse.Namespace, group: str, run: Run) -> Path:
    output: Path | None = arguments.output
    return output / group if output else Path("models/releases") / run.config.called().name


def compare_methods(arguments: argparse.Namespace) -> None:
    """`compare`."""
    runs = [_run(arguments, seed) for seed in dict.fromkeys(arguments.seeds)]
    _check_data(runs[0], runs[0].tasks)
    build = partial(_build, arguments, runs[0])
    if not runs[0].family.adapters:
        content = compare_without_adapters(runs, arguments.results / PLAIN_RESULTS, build)
        print(comparison_table(content["settings"]))
        return
    summary = compare(runs, arguments.results, build)
    _draw(arguments.results / summary["setting"])
    about = "test ROC-AUC in percent (or as a column says), stored statistics, seeds"
    print(f"{about} {summary['seeds']}\n{summary_table(summary)}")


def ablate_settings(arguments: argparse.Namespace) -> None:
    """`ablate`."""
    run = _run(arguments)
    check_adapters(run)
    _check_data(run, run.tasks)
    content = ablate(run, arguments.results, partial(_build, arguments, run))
    folder = arguments.results / run.config.setting
    if (folder / "summary.json").is_file():
        _draw(folder)
    for group, rows in content["groups"].items():
        for name, row in rows.items():
            valid, test = (percent(row["stored"][key]) for key in ("valid_average", "average"))
            print(f"{group:16} {name:24} validation {valid}  test {test}")


def redraw(arguments: argparse.Namespace) -> None:
    """`figures`."""
    folders = sorted(path.parent for path in arguments.results.glob("*/summary.json"))
    if not folders:
        found = f"got no */summary.json in {arguments.results}"
        raise DataError(f"{found}, expected the results of `gmerging compare`")
    for folder in folders:
        _draw(folder)


def _draw(folder: Path) -> None:
    for path in draw_figures(folder):
        print(f"drew {path}")


def add_task(arguments: argparse.Namespace) -> None:
    """`add-task`."""
    run = _run(arguments)
    given = arguments.artifact, arguments.output, arguments.replace
    check_addition(run, *given)
    _check_data(run, run.tasks)
    _print_artifact(add_tasks(run, *given), arguments.output)


def remove_task(arguments: argparse.Namespace) -> None:
    """`remove-task`."""
    left = remove_tasks(arguments.artifact, arguments.tasks, arguments.output, arguments.replace)
    _print_artifact(left, arguments.output)


def screen_artifact(arguments: argparse.Namespace) -> None:
    """`screen`."""
    given = arguments.candidates, arguments.output, arguments.replace
    manifest = screen(arguments.artifact, arguments.molecules, *given)
    counts = manifest.provenance["screened"]
    unreadable = f"{counts['unreadable']} could not be read"
    print(f"screened with {counts['molecules']} molecules, {unreadable}")
    _print_artifact(manifest, arguments.output)


def inspect_artifact(arguments: argparse.Namespace) -> None:
    """`inspect`."""
    print(describe(arguments.artifact))


def study_gnnmerge(arguments: argparse.Namespace) -> None:
    """`study gnnmerge`."""
    _set_up(arguments)
    given = arguments.data, arguments.work, arguments.seconds, arguments.results
    content = gnnmerge.run_study(*given)
    print(gnnmerge.speed_table(content))


def study_gffmerge(arguments: argparse.Namespace) -> None:
    """`study gffmerge`."""
    _set_up(arguments)
    config, work = load_config(arguments.config), arguments.work / "gffmerge"
    seeds = list(dict.fromkeys(arguments.seeds))
    entry = gffmerge.run_study(config, arguments.data, work, seeds, arguments.results)
    print(average_errors_table(entry))


def study_gw_smm(arguments: argparse.Namespace) -> None:
    """`study gw-smm`."""
    runs = [_run(arguments, seed) for seed in dict.fromkeys(arguments.seeds)]
    content = gw_smm.run_study(runs, arguments.both, arguments.results)
    print(gw_smm_tables(content)["groups"])


def study_experts(arguments: argparse.Namespace) -> None:
    """`study experts`."""
    _set_up(arguments)
    config, seeds = load_experts_config(arguments.config), list(dict.fromkeys(arguments.seeds))
    folders = arguments.data, arguments.work
    print(expert_tables(run_experts(config, *folders, seeds, arguments.results)))
