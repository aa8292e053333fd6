"""The command `gmerging`: parses, checks, calls. No logic lives here."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from merging.config import CONFIG_FOLDER, load_config
from merging.inspection import describe
from merging.pipeline import configured_merge, finetuned, trained_adapters
from merging.registry import MERGERS
from merging.release import release, results_table
from merging.results import evaluate
from merging.run import Run
from models.device import choose_device
from models.errors import ConfigError, GMergingError

DEFAULT_CONFIG = "gcn_supervised_contextpred.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 for an error that is the project's own, 2 for wrong arguments."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except GMergingError as error:
        print(f"gmerging: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gmerging: stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gmerging", description="Merge fine-tuned graph neural networks into one backbone with an adapter bank.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, function, about in (
        ("finetune", _finetune, "fine-tune one model per task from the pre-trained backbone"),
        ("merge", _merge, "merge the fine-tuned backbones"),
        ("train-adapters", _train_adapters, "train each task's adapters on the merged backbone (no labels)"),
        ("evaluate", _evaluate, "ROC-AUC of every method on every task"),
        ("release", _release, "the whole chain, and the artifact that the service answers from"),
    ):
        command = commands.add_parser(name, help=about, description=f"{about}. Finished pieces are kept in the work folder and found again.")
        command.set_defaults(command=function)
        _add_run_options(command)
        if name in ("finetune", "train-adapters", "release"):
            command.add_argument("--processes", type=int, default=1, help="tasks worked on at a time, one process each (default 1)")
        if name in ("finetune", "train-adapters"):
            command.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks (default: all of the configuration)")
        if name == "release":
            command.add_argument("--output", type=Path, help="the artifact's folder (default models/releases/<name>)")
            command.add_argument("--results", type=Path, default=Path("results"), help="where the results file goes (default results)")
    inspect = commands.add_parser("inspect", help="verify an artifact and say what is in it")
    inspect.add_argument("artifact", type=Path, help="an artifact's folder")
    inspect.set_defaults(command=_inspect)
    return parser


def _add_run_options(command: argparse.ArgumentParser) -> None:
    bundled = ", ".join(sorted(path.name for path in CONFIG_FOLDER.glob("*.yaml")))
    command.add_argument("--config", type=Path, default=Path(DEFAULT_CONFIG), help=f"YAML file, or one that comes with the package: {bundled}")
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn (default 0)")
    command.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="torch threads per process (default %(default)s)")
    command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default auto: cuda if there is one")
    command.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("GMERGING_DATA", "../shared/data")),
        help="data folder, from GMERGING_DATA or %(default)s; sets that are not there are fetched",
    )
    command.add_argument(
        "--work",
        type=Path,
        default=Path(os.environ.get("GMERGING_WORK", "work")),
        help="work folder for finished pieces and resumable state, from GMERGING_WORK or %(default)s",
    )


def _run(arguments: argparse.Namespace) -> Run:
    if arguments.threads < 1:
        raise ConfigError(f"--threads: got {arguments.threads}, expected at least 1")
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    run = Run(load_config(arguments.config), arguments.seed, arguments.data, arguments.work, device, workers=arguments.threads)
    run.write_settings()
    return run


def _for_tasks(arguments: argparse.Namespace, run: Run, stage: Callable[[Run, str], object], tasks: Sequence[str]) -> None:
    """A stage for several tasks, one after the other or in processes of their own."""
    unknown = sorted(set(tasks) - set(run.config.tasks))
    if unknown:
        raise ConfigError(f"--tasks: got {', '.join(unknown)}, expected names among {', '.join(run.config.tasks)}")
    if arguments.processes < 1:
        raise ConfigError(f"--processes: got {arguments.processes}, expected at least 1")
    if arguments.processes == 1:
        for task in tasks:
            stage(run, task)
        return
    # Fresh processes: a forked one would inherit torch's thread pool in an unknown state.
    context, limit = get_context("spawn"), partial(torch.set_num_threads, arguments.threads)
    with ProcessPoolExecutor(arguments.processes, mp_context=context, initializer=limit) as pool:
        list(pool.map(partial(_stage_quietly, stage, run), tasks))


def _stage_quietly(stage: Callable[[Run, str], object], run: Run, task: str) -> None:
    """Run a stage in a process of its own; what it makes is read back from the work folder, not sent."""
    stage(run, task)


def _finetune(arguments: argparse.Namespace) -> None:
    run = _run(arguments)
    _for_tasks(arguments, run, finetuned, arguments.tasks or run.config.tasks)
    for task in arguments.tasks or run.config.tasks:
        record = finetuned(run, task).record
        print(f"{task}: best epoch {record['best_epoch']} of {record['epochs']}, {record['seconds']} s")


def _merge(arguments: argparse.Namespace) -> None:
    record = configured_merge(_run(arguments)).record
    print(f"merged {len(record['tasks'])} models by {record['method']} ({MERGERS[record['method']].paper}), scaling {record['scaling']}")


def _train_adapters(arguments: argparse.Namespace) -> None:
    run = _run(arguments)
    configured_merge(run)
    _for_tasks(arguments, run, trained_adapters, arguments.tasks or run.config.tasks)
    for task in arguments.tasks or run.config.tasks:
        record = trained_adapters(run, task).record
        print(f"{task}: loss {record['loss'][0]:.4f} -> {record['loss'][-1]:.4f} in {record['epochs']} epochs, {record['seconds']} s")


def _evaluate(arguments: argparse.Namespace) -> None:
    results = evaluate(_run(arguments))
    print(f"test ROC-AUC, stored statistics\n{results_table(results)}\nrecovery: {results['recovery']}")


def _release(arguments: argparse.Namespace) -> None:
    run = _run(arguments)
    _for_tasks(arguments, run, finetuned, run.config.tasks)
    configured_merge(run)
    _for_tasks(arguments, run, trained_adapters, run.config.tasks)
    folder = arguments.output or Path("models/releases") / run.config.release.name
    manifest = release(run, folder, arguments.results)
    print(f"{manifest.name} {manifest.version}: {len(manifest.tasks)} tasks in {folder}")


def _inspect(arguments: argparse.Namespace) -> None:
    print(describe(arguments.artifact))
