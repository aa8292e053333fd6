"""The command `gmerging`: which commands there are, and what their errors look like."""

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from merging.cli import commands, options
from merging.cli.options import Option, config_options, option
from merging.run.config import BUNDLED
from merging.studies.experts.config import EXPERTS_CONFIG_FOLDER
from merging.training.pretraining import PRETRAIN_CONFIG_FOLDER
from models.errors import GMergingError
from models.validation import one_of

DEFAULT_CONFIG = "gcn_supervised_contextpred.yaml"
NEIGHBOURS = Path("results/neighbours")
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
    """Entry point; returns the exit status: 0, 1 for an error that is the project's own or of a
    file, 2 for wrong arguments, 130 for one that was stopped."""
    try:
        arguments = _parser().parse_args(argv)
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


class _Parser(argparse.ArgumentParser):
    """One that says which command may have been meant, and whose own the unknown options are."""

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
    for name, function, about, given in _commands():
        _add(added, name, function, about, given)
    about = "the papers' studies: results files and tables"
    study = added.add_parser("study", help=about, description=f"{about}.")
    studies = study.add_subparsers(required=True, metavar="study")
    for name, function, about, given in _studies():
        _add(studies, name, function, about, given)
    return parser


Row = tuple[str, Callable[[argparse.Namespace], None], str, tuple[Option, ...]]
"""A command: its name, what does it, a line about it, and its options."""


def _commands() -> list[Row]:
    run = config_options(DEFAULT_CONFIG, BUNDLED), options.device
    one = *run, options.seed
    pretraining = config_options("gin_contextpred.yaml", (PRETRAIN_CONFIG_FOLDER,))
    output = option(
        "--output",
        type=Path,
        help="the artifact's folder, with --plan the folder of one for each group;"
        " models/releases/<name> if not given",
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
        help="some molecules like those that will be asked about: lines of SMILES, or a table",
    )
    candidates = option(
        "--candidates",
        type=int,
        default=32,
        help="how many other experts each task's mixture looks at",
    )
    out = option("--tasks", nargs="+", metavar="TASK", required=True, help="the tasks to take out")
    finished = option("artifact", type=Path, help="an artifact's folder")
    new = options.artifact, options.new_artifact, options.replace
    several = options.processes, options.tasks
    return [
        (
            "pretrain",
            commands.pretrain_backbone,
            "pre-train a backbone without labels (context or edge prediction)",
            (pretraining, options.device, options.seed),
        ),
        ("finetune", commands.finetune, "train one model per task", (*one, *several)),
        (
            "plan",
            commands.plan_groups,
            "say which models to merge with each other, by distances between them (no labels): plan"
            " file and figures",
            (*one, options.plan_options, plan_file),
        ),
        ("merge", commands.merge_models, "merge the tasks' models", (*one, options.plan)),
        (
            "train-adapters",
            commands.train_adapters,
            "train each task's adapters on the merged backbone (no labels)",
            (*one, *several, options.plan),
        ),
        (
            "release",
            commands.release_models,
            "the whole chain, and the artifact that the service answers from",
            (*one, options.processes, options.plan, output, options.replace),
        ),
        (
            "compare",
            commands.compare_methods,
            "every method of the configuration, several seeds: results files, table and figures",
            (*run, options.seeds, options.processes, options.results),
        ),
        (
            "ablate",
            commands.ablate_settings,
            "the configuration's ablations and sweeps, one seed: results file and figures",
            (*one, options.processes, options.results),
        ),
        (
            "figures",
            commands.redraw,
            "draw every figure again from the results files",
            (options.results,),
        ),
        (
            "add-task",
            commands.add_task,
            "add the tasks of a configuration to a finished artifact; its backbone and other"
            " adapters stay as they are",
            (*one, *new),
        ),
        (
            "remove-task",
            commands.remove_task,
            "write an artifact without some of its tasks",
            (out, *new),
        ),
        (
            "screen",
            commands.screen_artifact,
            "have each task's mixture look at few other experts, for artifacts of many tasks",
            (molecules, candidates, *new),
        ),
        (
            "inspect",
            commands.inspect_artifact,
            "verify an artifact and say what is in it",
            (finished,),
        ),
    ]


def _studies() -> list[Row]:
    def file(name: str) -> Option:
        path = NEIGHBOURS / f"{name}.json"
        return option("--results", type=Path, default=path, help="the results file")

    seconds = option(
        "--seconds", type=float, default=float("inf"), help="begin nothing new after so many"
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
    forces = config_options("md17.yaml", BUNDLED)
    domains = config_options("six_domains.yaml", (EXPERTS_CONFIG_FOLDER,))
    planned = config_options(DEFAULT_CONFIG, BUNDLED)
    return [
        (
            "gnnmerge",
            commands.study_gnnmerge,
            "GNNMerge against other mergers on Cora, Citeseer and MoleculeNet",
            (options.folder_options, seconds, file("gnnmerge")),
        ),
        (
            "gffmerge",
            commands.study_gffmerge,
            "every way to merge force fields",
            (forces, options.seeds, file("gffmerge")),
        ),
        (
            "gw-smm",
            commands.study_gw_smm,
            "whether distances between models predict which merges hurt",
            (planned, options.seeds, both, folder),
        ),
        (
            "experts",
            commands.study_experts,
            "a mixture of graph experts: routing, ensemble and merged expert (KDEM, PPEM)",
            (domains, options.seeds, file("expert-merging")),
        ),
    ]


def _add(
    commands_: "argparse._SubParsersAction[_Parser]",
    name: str,
    function: Callable[[argparse.Namespace], None],
    about: str,
    given: tuple[Option, ...],
) -> None:
    added = commands_.add_parser(
        name, help=about, description=f"{about}.", formatter_class=_Formatter
    )
    added.set_defaults(command=function)
    for add_option in given:
        add_option(added)
