"""The command `gmerging`: parses, checks, calls. No logic lives here."""

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import get_args

from merging.cli.neighbours import add_neighbours
from merging.cli.options import add_replace_option, add_run_options, say_artifact, set_up
from merging.config.base import CONFIG_FOLDER
from merging.data.molecule_dataset import describe_dataset
from merging.drawing.figures import draw_figures
from merging.drawing.plan import draw_plan
from merging.mergers.registry import MERGERS
from merging.planning.distances import Variant
from merging.planning.plan import (
    Metric,
    make_plan,
    plan_settings,
    planned_runs,
    read_plan,
    write_plan,
)
from merging.release.extension import add_tasks, check_addition, remove_tasks, screen
from merging.release.inspection import describe
from merging.release.release import check_release, release
from merging.run.config import load_config, release_of
from merging.run.jobs import Job, run_jobs
from merging.run.run import Run
from merging.run.stages import finetuned, merged, shared_backbone, trained_adapters
from merging.studies.markdown import percent
from merging.studies.report import ablate, compare, summary_table
from merging.training.pretraining import PRETRAIN_CONFIG_FOLDER, load_pretrain_config, pretrain
from models.errors import ConfigError, DataError, GMergingError

PRETRAIN_CONFIG = "gin_contextpred.yaml"
DEFAULT_CONFIG = "gcn_supervised_contextpred.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 for an error that is the project's own or of a
    file, 2 for wrong arguments, 130 for one that was stopped."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except (GMergingError, OSError) as error:
        print(f"gmerging: {error}", file=sys.stderr)
        return 1
    except (BrokenProcessPool, MemoryError) as error:
        found = f"a process died or got no memory ({error})"
        remedy = "try fewer --processes or --threads; the same command goes on where it was"
        print(f"gmerging: {found}; {remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gmerging: stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gmerging",
        description=(
            "Merge fine-tuned graph neural networks into one backbone with an adapter bank."
        ),
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        name: str, function: Callable[[argparse.Namespace], None], about: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=about,
            description=f"{about}.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        added.set_defaults(command=function)
        return added

    pretrain_ = command(
        "pretrain", _pretrain, "pre-train a backbone without labels (context or edge prediction)"
    )
    finetune_ = command(
        "finetune", _finetune, "fine-tune one model per task from the pre-trained backbone"
    )
    plan_ = command(
        "plan",
        _plan,
        "say which models to merge with each other, by distances between them (no labels): plan"
        " file and figures",
    )
    merge_ = command("merge", _merge, "merge the fine-tuned backbones")
    adapters = command(
        "train-adapters",
        _train_adapters,
        "train each task's adapters on the merged backbone (no labels)",
    )
    release_ = command(
        "release", _release, "the whole chain, and the artifact that the service answers from"
    )
    compare_ = command(
        "compare",
        _compare,
        "every method of the configuration, several seeds: results files, table and figures",
    )
    ablate_ = command(
        "ablate",
        _ablate,
        "the configuration's ablations and sweeps, one seed: results file and figures",
    )
    figures = command("figures", _figures, "draw every figure again from the results files")
    add = command(
        "add-task",
        _add_task,
        "add the tasks of a configuration to a finished artifact; its backbone and other adapters"
        " stay as they are",
    )
    remove = command("remove-task", _remove_task, "write an artifact without some of its tasks")
    screen_ = command(
        "screen",
        _screen,
        "have each task's mixture look at few other experts, for artifacts of many tasks",
    )
    add_neighbours(command)
    inspect = command("inspect", _inspect, "verify an artifact and say what is in it")

    add_run_options(pretrain_, PRETRAIN_CONFIG_FOLDER, PRETRAIN_CONFIG)
    for each in (finetune_, plan_, merge_, adapters, release_, compare_, ablate_, add):
        add_run_options(each, CONFIG_FOLDER, DEFAULT_CONFIG)
    for each in (finetune_, plan_, merge_, adapters, release_, ablate_, add, pretrain_):
        each.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    for each in (finetune_, adapters, release_, compare_, ablate_):
        each.add_argument(
            "--processes", type=int, default=1, help="pieces worked on at a time, one process each"
        )
    for each in (finetune_, adapters):
        each.add_argument(
            "--tasks",
            nargs="+",
            metavar="TASK",
            help="only these tasks, not all of the configuration",
        )
    _add_plan_options(plan_)
    for each in (merge_, adapters, release_):
        each.add_argument(
            "--plan", type=Path, help="plan file: each of its groups is merged on its own"
        )
    for each in (compare_, ablate_, figures):
        each.add_argument(
            "--results",
            type=Path,
            default=Path("results"),
            help="folder of the results, one folder in it per setting",
        )
    compare_.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="one run for each"
    )
    release_.add_argument(
        "--output",
        type=Path,
        help=(
            "the artifact's folder, with --plan the folder of one for each group;"
            " models/releases/<name> if not given"
        ),
    )
    _add_artifact_options(add, remove, screen_)
    for writing in (release_, add, remove, screen_):
        add_replace_option(writing)
    inspect.add_argument("artifact", type=Path, help="an artifact's folder")
    return parser


def _add_plan_options(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "--metric",
        choices=get_args(Metric),
        default="gw",
        help="feature spaces (gw, cka) or task vectors (cosine)",
    )
    plan.add_argument(
        "--variant", choices=get_args(Variant), default="exact", help="solver of Gromov-Wasserstein"
    )
    plan.add_argument(
        "--restarts",
        type=int,
        default=4,
        help="starts of that solver for each pair, the best counts",
    )
    plan.add_argument("--group-size", type=int, default=3, help="the most models in a group")
    plan.add_argument(
        "--output",
        type=Path,
        default=Path("plan.json"),
        help="the plan file; figures are drawn beside it",
    )


def _add_artifact_options(
    add: argparse.ArgumentParser, remove: argparse.ArgumentParser, screen: argparse.ArgumentParser
) -> None:
    for each in (add, remove, screen):
        each.add_argument(
            "--artifact", type=Path, required=True, help="folder of the finished artifact"
        )
        about = "folder of the new artifact; may be the same"
        each.add_argument("--output", type=Path, required=True, help=about)
    remove.add_argument(
        "--tasks", nargs="+", metavar="TASK", required=True, help="the tasks to take out"
    )
    about = "some molecules like those that will be asked about: lines of SMILES, or a table"
    screen.add_argument("--molecules", type=Path, required=True, help=about)
    screen.add_argument(
        "--candidates",
        type=int,
        default=32,
        help="how many other experts each task's mixture looks at",
    )


def _run(arguments: argparse.Namespace, seed: int | None = None) -> Run:
    device = set_up(arguments)
    seed = arguments.seed if seed is None else seed
    config, workers = load_config(arguments.config), arguments.threads
    run = Run(config, seed, arguments.data, arguments.work, device, workers)
    run.pretrained_path()  # once, and before any work: what is published is fetched here
    return run


def _runs(arguments: argparse.Namespace) -> dict[str, Run]:
    """The run; with a plan, by group a run of its tasks."""
    run = _run(arguments)
    return planned_runs(run, read_plan(arguments.plan)) if arguments.plan else {"": run}


def _check_data(run: Run, tasks: Sequence[str]) -> None:
    """Read the data of all tasks before anything is trained, and tell what was read as what."""
    for task in tasks:
        print(describe_dataset(run.dataset(task)))


def _do(arguments: argparse.Namespace, description: str, jobs: list[Job]) -> None:
    run_jobs(description, jobs, arguments.processes, arguments.threads)


def _tasks(arguments: argparse.Namespace, run: Run) -> Sequence[str]:
    unknown = sorted(set(arguments.tasks or ()) - set(run.config.tasks))
    if unknown:
        raise ConfigError(
            f"--tasks: got {', '.join(unknown)}, expected names among {', '.join(run.config.tasks)}"
        )
    return arguments.tasks or run.config.tasks


def _pretrain(arguments: argparse.Namespace) -> None:
    device = set_up(arguments)
    path = pretrain(
        load_pretrain_config(arguments.config),
        arguments.data,
        arguments.work,
        arguments.seed,
        device,
        arguments.threads,
    )
    print(f"pre-trained weights: {path}")


def _finetune(arguments: argparse.Namespace) -> None:
    run = _run(arguments)
    tasks = _tasks(arguments, run)
    _check_data(run, tasks)
    _do(arguments, "fine-tuning", [partial(finetuned, run, task) for task in tasks])
    for task in tasks:
        record = finetuned(run, task).record
        print(
            f"{task}: best epoch {record['best_epoch']} of {record['epochs']},"
            f" {record['seconds']} s"
        )


def _plan(arguments: argparse.Namespace) -> None:
    given = ("metric", "variant", "restarts", "group_size")
    settings = plan_settings(**{name: getattr(arguments, name) for name in given})
    run = _run(arguments)
    _check_data(run, run.config.tasks)
    plan = make_plan(run, settings)
    write_plan(plan, arguments.output)
    for name, group in plan.groups.items():
        print(f"{name}: {', '.join(group)}")
    for path in [arguments.output, *draw_plan(plan, arguments.output.with_suffix(""))]:
        print(f"wrote {path}")


def _merge(arguments: argparse.Namespace) -> None:
    for run in _runs(arguments).values():
        _check_data(run, run.config.tasks)
        record = merged(run).record
        tasks, method = f"{len(record['tasks'])} models", record["method"]
        print(
            f"merged {tasks} by {method} ({MERGERS[method].paper}),"
            f" {record['options'] or 'as published'}: {', '.join(record['tasks'])}"
        )


def _train_adapters(arguments: argparse.Namespace) -> None:
    tasks, runs = _tasks(arguments, _run(arguments)), _runs(arguments)
    of_task = {task: run for run in runs.values() for task in run.config.tasks if task in tasks}
    for run in runs.values():
        _check_data(run, run.config.tasks)
        merged(run)
    _do(
        arguments,
        "training adapters",
        [partial(trained_adapters, run, task) for task, run in of_task.items()],
    )
    for task, run in of_task.items():
        record = trained_adapters(run, task).record
        print(
            f"{task}: loss {record['loss'][0]:.4f} -> {record['loss'][-1]:.4f} in"
            f" {record['epochs']} epochs, {record['seconds']} s"
        )


def _release(arguments: argparse.Namespace) -> None:
    runs = _runs(arguments)
    folders = {group: _release_folder(arguments, group, run) for group, run in runs.items()}
    for group, run in runs.items():
        check_release(run, folders[group], arguments.replace)
    pairs = [(run, task) for run in runs.values() for task in run.config.tasks]
    for run in runs.values():
        _check_data(run, run.config.tasks)
    _do(arguments, "fine-tuning", [partial(finetuned, run, task) for run, task in pairs])
    for run in runs.values():
        shared_backbone(run)  # before hours of training: what cannot be served is refused
    _do(
        arguments,
        "training adapters",
        [partial(trained_adapters, run, task) for run, task in pairs],
    )
    for group, run in runs.items():
        say_artifact(release(run, folders[group], arguments.replace), folders[group])


def _release_folder(arguments: argparse.Namespace, group: str, run: Run) -> Path:
    name = release_of(run.config).name
    output: Path | None = arguments.output
    return output / group if output else Path("models/releases") / name


def _compare(arguments: argparse.Namespace) -> None:
    runs = [_run(arguments, seed) for seed in dict.fromkeys(arguments.seeds)]
    _check_data(runs[0], runs[0].config.tasks)
    summary = compare(runs, arguments.results, partial(_do, arguments))
    _draw(arguments.results / summary["setting"])
    print(
        "test ROC-AUC in percent (or as a column says), stored statistics, seeds"
        f" {summary['seeds']}\n{summary_table(summary)}"
    )


def _ablate(arguments: argparse.Namespace) -> None:
    run = _run(arguments)
    _check_data(run, run.config.tasks)
    content = ablate(run, arguments.results, partial(_do, arguments))
    if (arguments.results / run.config.setting / "summary.json").is_file():
        _draw(arguments.results / run.config.setting)
    for group, rows in content["groups"].items():
        for name, row in rows.items():
            stored = row["stored"]
            print(
                f"{group:16} {name:24} validation {percent(stored['valid_average'])}  test"
                f" {percent(stored['average'])}"
            )


def _figures(arguments: argparse.Namespace) -> None:
    folders = sorted(path.parent for path in arguments.results.glob("*/summary.json"))
    if not folders:
        raise DataError(
            f"got no */summary.json in {arguments.results}, expected the results of `gmerging"
            " compare`"
        )
    for folder in folders:
        _draw(folder)


def _draw(folder: Path) -> None:
    for path in draw_figures(folder):
        print(f"drew {path}")


def _add_task(arguments: argparse.Namespace) -> None:
    run = _run(arguments)
    options = arguments.artifact, arguments.output, arguments.replace
    check_addition(run, *options)
    _check_data(run, run.config.tasks)
    say_artifact(add_tasks(run, *options), arguments.output)


def _remove_task(arguments: argparse.Namespace) -> None:
    left = remove_tasks(arguments.artifact, arguments.tasks, arguments.output, arguments.replace)
    say_artifact(left, arguments.output)


def _screen(arguments: argparse.Namespace) -> None:
    options = arguments.candidates, arguments.output, arguments.replace
    manifest = screen(arguments.artifact, arguments.molecules, *options)
    counts = manifest.provenance["screened"]
    unreadable = f"{counts['unreadable']} could not be read"
    print(f"screened with {counts['molecules']} molecules, {unreadable}")
    say_artifact(manifest, arguments.output)


def _inspect(arguments: argparse.Namespace) -> None:
    print(describe(arguments.artifact))
