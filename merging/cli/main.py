"""The command line of `gmerging`: the table of commands, their options, and exit codes."""

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from inspect import getdoc
from pathlib import Path

from merging.cli import commands, import_commands, options, own_models
from merging.cli.options import Option, config_options, option
from merging.imports.weights import weight_mergers
from merging.run.config import BUNDLED
from merging.studies.boards import METHODS
from merging.studies.experts.config import EXPERTS_CONFIG_FOLDER
from merging.training.pretraining import PRETRAIN_CONFIG_FOLDER
from models.errors import GMergingError
from models.validation import one_of

DEFAULT_CONFIG = "gcn_supervised_contextpred.yaml"
ONE_PASS_CONFIG = "gcn_supervised_contextpred_one_pass.yaml"
RESULTS = Path("results")
NEIGHBOURS = RESULTS / "neighbours"
_RENAMED = {
    "graphs": "release",
    "release-graphs": "release",
    "compare-graphs": "compare",
    "force-field": "release",
    "release-force-field": "release",
    "compare-force-fields": "study gffmerge",
    "gnnmerge": "study gnnmerge",
    "gffmerge": "study gffmerge",
    "gw-smm": "study gw-smm",
    "experts": "study experts",
}
"""Commands as they were called before a configuration said which kind of model it is, and studies
without their `study`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 1 for an error of the project or of a file, 2 for
    invalid arguments, 130 for an interrupt."""
    try:
        arguments = _parser().parse_args(argv)
        arguments.command(arguments)
    except (GMergingError, OSError) as error:
        print(f"gmerging: {error}", file=sys.stderr)
        return 1
    except (BrokenProcessPool, MemoryError) as error:
        problem = f"a process died or got no memory ({error})"
        remedy = "try fewer --processes or --threads; the same command resumes where it stopped"
        print(f"gmerging: {problem}; {remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gmerging: stopped; the same command resumes where it stopped", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that suggests the command that may have been meant, and names the command whose
    options are unknown."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            known = one_of(str(value), tuple(action.choices))
            renamed = _RENAMED.get(str(value))
            if renamed:
                known = f"`gmerging {renamed}`, which does its work now"
            raise argparse.ArgumentError(action, f"got {value!r}, expected {known}")
        super()._check_value(action, value)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, and refuse what is unknown here: with this command's usage."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"got {' '.join(unknown)}, expected the options of `{self.prog}`")
        return found, unknown


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the default of what has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required or action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gmerging", description="Merge fine-tuned graph neural networks into one network."
    )
    added = parser.add_subparsers(required=True, metavar="command")
    for row in _commands():
        _add(added, *row)
    about = "Run a study; write its results file and print its table."
    study = added.add_parser("study", help=about, description=about)
    studies = study.add_subparsers(required=True, metavar="study")
    for row in _studies():
        _add(studies, *row)
    return parser


Row = tuple[str, Callable[[argparse.Namespace], None], tuple[Option, ...]]
"""A command: its name, its function, whose docstring is the help text, and its options."""


def _commands() -> list[Row]:
    base = config_options(DEFAULT_CONFIG, BUNDLED), options.device
    one_seed = *base, options.seed
    pretraining = config_options("gin_contextpred.yaml", (PRETRAIN_CONFIG_FOLDER,))
    output = option(
        "--output",
        type=Path,
        help="the artifact's folder; with --plan, the folder of the groups' artifacts;"
        " models/releases/<name> by default",
    )
    plan_file = option(
        "--output",
        type=Path,
        default=Path("plan.json"),
        help="the plan file; figures are drawn beside it",
    )
    molecules = option(
        "--molecules",
        type=Path,
        required=True,
        help="molecules like those to be predicted: lines of SMILES, or a table",
    )
    candidates = option(
        "--candidates",
        type=int,
        default=32,
        help="number of other experts that each task's mixture considers",
    )
    removed = option(
        "--tasks", nargs="+", metavar="TASK", required=True, help="the tasks to remove"
    )
    artifact = option("artifact", type=Path, help="an artifact's folder")
    processes, replace = options.processes, options.replace
    new_artifact = options.artifact, options.new_artifact, replace
    per_task = processes, options.tasks
    return [
        ("pretrain", commands.pretrain_backbone, (pretraining, options.device, options.seed)),
        ("finetune", commands.finetune, (*one_seed, *per_task)),
        ("plan", commands.plan_groups, (*one_seed, options.plan_options, plan_file)),
        ("merge", commands.merge_models, (*one_seed, options.plan)),
        ("train-adapters", commands.train_adapters, (*one_seed, *per_task, options.plan)),
        ("release", commands.release_models, (*one_seed, processes, options.plan, output, replace)),
        ("compare", commands.compare_methods, (*base, options.seeds, processes, options.results)),
        ("ablate", commands.ablate_settings, (*one_seed, processes, options.results)),
        ("figures", commands.redraw, (options.results,)),
        ("add-task", commands.add_task, (*one_seed, *new_artifact)),
        ("add-forests", commands.add_forest, (*one_seed, *per_task, *new_artifact)),
        ("remove-task", commands.remove_task, (removed, *new_artifact)),
        ("screen", commands.screen_artifact, (molecules, candidates, *new_artifact)),
        ("inspect", commands.inspect_artifact, (artifact,)),
        *own_models.rows(),
        ("merge-weights", import_commands.merge_state_dicts, _weight_options()),
    ]


def _weight_options() -> tuple[Option, ...]:
    about = "state dicts (.pt, .pth, .ckpt or .safetensors), also within training checkpoints"
    models = option("models", type=Path, nargs="+", metavar="model", help=about)
    about = "the state dict that they were fine-tuned from"
    base = option("--base", type=Path, required=True, help=about)
    about = f"the merger: {', '.join(weight_mergers())}"
    method = option("--method", default="task_arithmetic", help=about)
    about = "options of the merger, such as scaling=0.3; as published by default"
    merger = option("--options", nargs="+", metavar="NAME=VALUE", help=about)
    about = "the merged state dict (.safetensors); its metadata say what it was made of"
    output = option("--output", type=Path, required=True, help=about)
    return models, base, method, merger, options.seed, output


def _results_file(name: str, folder: Path = NEIGHBOURS) -> Option:
    path = folder / f"{name}.json"
    return option("--results", type=Path, default=path, help="the results file")


def _studies() -> list[Row]:
    seconds = option(
        "--seconds", type=float, default=float("inf"), help="start nothing new after this time"
    )
    both = option(
        "--both",
        type=int,
        nargs="*",
        default=[],
        metavar="SEED",
        help="seeds for which pairs are merged by weight average too",
    )
    folder = option("--results", type=Path, default=NEIGHBOURS, help="folder of the results")
    forces = config_options("md17.yaml", BUNDLED), options.seeds, _results_file("gffmerge")
    domains = config_options("six_domains.yaml", (EXPERTS_CONFIG_FOLDER,)), options.seeds
    planned = config_options(DEFAULT_CONFIG, BUNDLED), options.seeds, both, folder
    gnnmerge = options.folder_options, seconds, _results_file("gnnmerge")
    return [
        ("gnnmerge", commands.study_gnnmerge, gnnmerge),
        ("gffmerge", commands.study_gffmerge, forces),
        ("gw-smm", commands.study_gw_smm, planned),
        ("experts", commands.study_experts, (*domains, _results_file("expert-merging"))),
        ("one-pass", commands.study_one_pass, _one_pass_options()),
        ("forests", commands.study_forests, _forest_options()),
        *_admet_studies(),
    ]


def _one_pass_options() -> tuple[Option, ...]:
    teachers = option(
        "--teachers",
        type=Path,
        metavar="ARTIFACT",
        help="imitate the own streams of this artifact, not the run's fine-tuned models",
    )
    variants = option(
        "--variants",
        nargs="+",
        default=[],
        metavar="VARIANT",
        help="only these variants of `compare.one_pass`; `base` is the configuration itself",
    )
    config = config_options(ONE_PASS_CONFIG, BUNDLED), options.device, options.seeds
    results = _results_file("one-pass", RESULTS / "one-pass")
    return (*config, options.processes, teachers, variants, results)


def _forest_options() -> tuple[Option, ...]:
    artifacts = option(
        "--artifacts",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="folders of finished artifacts, such as those of several seeds",
    )
    config = config_options(DEFAULT_CONFIG, BUNDLED), options.device, options.seeds, options.tasks
    return (*config, artifacts, _results_file("forests", RESULTS))


def _admet_studies() -> list[Row]:
    config = config_options("admet.yaml", BUNDLED), options.device
    methods = option(
        "--methods",
        nargs="+",
        default=["finetuned"],
        metavar="METHOD",
        help=f"what is measured: {', '.join(METHODS)}",
    )
    added = option(
        "--results", type=Path, default=Path("results/admet/scores.json"), help="the file of scores"
    )
    group = option(
        "--group",
        metavar="NAME",
        help="the tasks of --tasks are a run of their own: merged or trained with each other alone",
    )
    measured = options.seeds, options.processes, options.tasks, group, methods, added
    scores = option(
        "--scores", type=Path, required=True, help="the file of scores (`study scores`)"
    )
    board = option("--boards", type=Path, required=True, help="the leaderboards, as JSON")
    folder = option(
        "--results", type=Path, default=Path("results/admet"), help="folder of the results"
    )
    boards = options.folder_options, scores, board, folder
    return [
        ("scores", commands.study_scores, (*config, *measured)),
        ("admet-boards", commands.study_admet_boards, boards),
        ("overlaps", commands.study_overlaps, (*config, options.seed, options.results)),
    ]


def _add(
    subparsers: "argparse._SubParsersAction[_Parser]",
    name: str,
    function: Callable[[argparse.Namespace], None],
    added_options: tuple[Option, ...],
) -> None:
    about = getdoc(function)
    parser = subparsers.add_parser(name, help=about, description=about, formatter_class=_Formatter)
    parser.set_defaults(command=function)
    for add_option in added_options:
        add_option(parser)
