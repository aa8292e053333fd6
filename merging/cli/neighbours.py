"""The commands of the neighbouring methods: graphs of any kind, force fields, experts."""

import argparse
from pathlib import Path

from merging.cli.options import (
    AddCommand,
    add_replace_option,
    add_run_options,
    say_artifact,
    set_up,
)
from merging.families.force_fields import FORCE_FIELD_CONFIGS, load_force_field_config
from merging.families.graphs import GRAPHS_CONFIG_FOLDER, load_graph_config
from merging.force_fields.pieces import Study
from merging.force_fields.release import release_atoms
from merging.graphs.comparison import scores_table, write_comparison
from merging.graphs.pipeline import GraphRun
from merging.graphs.release import release_graphs
from merging.studies.experts.config import EXPERTS_CONFIG_FOLDER, load_experts_config
from merging.studies.experts.study import run_study
from merging.studies.experts.summary import expert_tables
from merging.studies.gffmerge import run_study as run_force_field_study
from merging.studies.gffmerge_tables import overall

GRAPHS_CONFIG = "cora_label_split.yaml"
FORCE_FIELD_CONFIG = "md17.yaml"
EXPERTS_CONFIG = "six_domains.yaml"
RESULTS = Path("results/neighbours")


def add_neighbours(command: AddCommand) -> None:
    """Add these commands."""
    graphs = command(
        "graphs",
        _graphs,
        "train, merge and release models of graphs with any numeric node features",
    )
    compare_graphs = command(
        "compare-graphs",
        _compare_graphs,
        "separate, joint and merged models of such graphs, several seeds: results and table",
    )
    fields = command(
        "force-field",
        _force_field,
        "train, merge (GFFMerge) and release force fields: energies and forces of atoms",
    )
    compare_fields = command(
        "compare-force-fields",
        _compare_force_fields,
        "every way to merge force fields, several seeds: results and table",
    )
    experts = command(
        "experts",
        _experts,
        "train a mixture of graph experts; measure routing, ensemble and merged expert (KDEM,"
        " PPEM)",
    )
    for each in (graphs, compare_graphs):
        add_run_options(each, GRAPHS_CONFIG_FOLDER, GRAPHS_CONFIG)
    for each in (fields, compare_fields):
        add_run_options(each, FORCE_FIELD_CONFIGS, FORCE_FIELD_CONFIG, on_device=False)
    add_run_options(experts, EXPERTS_CONFIG_FOLDER, EXPERTS_CONFIG, on_device=False)
    for each in (graphs, fields):
        each.add_argument("--seed", type=int, default=0, help="of all that is drawn")
        each.add_argument("--output", type=Path, required=True, help="the artifact's folder")
        add_replace_option(each)
    for each, file in (
        (compare_graphs, "generic-graphs"),
        (compare_fields, "gffmerge"),
        (experts, "expert-merging"),
    ):
        each.add_argument(
            "--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="one run for each"
        )
        each.add_argument(
            "--results", type=Path, default=RESULTS / f"{file}.json", help="the results file"
        )


def _graph_run(arguments: argparse.Namespace, seed: int) -> GraphRun:
    return GraphRun(
        load_graph_config(arguments.config), seed, arguments.data, arguments.work, set_up(arguments)
    )


def _graphs(arguments: argparse.Namespace) -> None:
    run = _graph_run(arguments, arguments.seed)
    say_artifact(release_graphs(run, arguments.output, arguments.replace), arguments.output)


def _compare_graphs(arguments: argparse.Namespace) -> None:
    runs = [_graph_run(arguments, seed) for seed in dict.fromkeys(arguments.seeds)]
    print(scores_table(write_comparison(runs, arguments.results)["settings"]))


def _force_field(arguments: argparse.Namespace) -> None:
    set_up(arguments)
    study = Study(
        load_force_field_config(arguments.config),
        arguments.seed,
        arguments.data,
        arguments.work / "gffmerge",
    )
    say_artifact(release_atoms(study, arguments.output, arguments.replace), arguments.output)


def _compare_force_fields(arguments: argparse.Namespace) -> None:
    set_up(arguments)
    seeds, work = list(dict.fromkeys(arguments.seeds)), arguments.work / "gffmerge"
    entry = run_force_field_study(
        load_force_field_config(arguments.config), arguments.data, work, seeds, arguments.results
    )
    print(overall(entry))


def _experts(arguments: argparse.Namespace) -> None:
    set_up(arguments)
    seeds = list(dict.fromkeys(arguments.seeds))
    print(
        expert_tables(
            run_study(
                load_experts_config(arguments.config),
                arguments.data,
                arguments.work,
                seeds,
                arguments.results,
            )
        )
    )
