"""The tables of commands for training and merging, and of studies."""

from pathlib import Path

from merging.cli import commands, import_commands, options, own_models
from merging.cli.building import stage_options
from merging.cli.options import config_options
from merging.cli.parser import Option, Row, option
from merging.imports.weights import weight_mergers
from merging.run.config import BUNDLED
from merging.studies.boards import METHODS
from merging.studies.experts.config import EXPERTS_CONFIG_FOLDER
from merging.training.pretraining import PRETRAIN_CONFIG_FOLDER

DEFAULT_CONFIG = "gcn_supervised_contextpred.yaml"
ONE_PASS_CONFIG = "gcn_supervised_contextpred_one_pass.yaml"
RESULTS = Path("results")
NEIGHBOURS = RESULTS / "neighbours"


def command_rows() -> list[Row]:
    """The commands, in the order in which a model is made."""
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
    drugs = option(
        "--molecules",
        type=Path,
        required=True,
        help="the list of drugs: lines of SMILES, a table, or a Parquet file",
    )
    list_of = {"source": "where it is from, with its version", "date": "of the list"}
    list_of["terms"] = "under which it may be used"
    about_drugs = tuple(
        option(f"--{name}", required=True, help=about) for name, about in list_of.items()
    )
    removed = option(
        "--tasks", nargs="+", metavar="TASK", required=True, help="the tasks to remove"
    )
    artifact = option(
        "artifact", type=Path, help="an artifact's folder, or the name of a released model"
    )
    structures = option("--output", type=Path, required=True, help="the file to write")
    stages, replace = stage_options, options.replace
    new_artifact = options.artifact, options.new_artifact, replace
    per_task = stages, options.tasks
    return [
        ("pretrain", commands.pretrain_backbone, (pretraining, options.device, options.seed)),
        ("finetune", commands.finetune, (*one_seed, *per_task)),
        ("plan", commands.plan_groups, (*one_seed, options.plan_options, plan_file)),
        ("merge", commands.merge_models, (*one_seed, options.plan)),
        ("train-adapters", commands.train_adapters, (*one_seed, *per_task, options.plan)),
        ("release", commands.release_models, (*one_seed, stages, options.plan, output, replace)),
        ("compare", commands.compare_methods, (*base, options.seeds, stages, options.results)),
        ("ablate", commands.ablate_settings, (*one_seed, stages, options.results)),
        ("figures", commands.redraw, (options.results,)),
        ("add-task", commands.add_task, (*one_seed, *new_artifact)),
        ("add-forests", commands.add_forest, (*one_seed, *per_task, *new_artifact)),
        ("describe-labels", commands.describe_labels_of, (*base, *new_artifact)),
        ("add-drugs", commands.add_drugs_of, (*base, drugs, *about_drugs, *new_artifact)),
        ("add-domain", commands.add_domain, (*base, options.tasks, *new_artifact)),
        ("domain-structures", commands.domain_structures, (*base, options.artifact, structures)),
        ("remove-task", commands.remove_task, (removed, *new_artifact)),
        ("screen-experts", commands.screen_artifact, (molecules, candidates, *new_artifact)),
        ("inspect", commands.inspect_artifact, (artifact, options.as_json)),
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


def study_rows() -> list[Row]:
    """The studies, commands of `gmerging study`."""
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
    ways = option(
        "--ways",
        type=int,
        help="measure the pairs of so many random partitions into pairs, for many tasks; all pairs"
        " by default",
    )
    folder = option("--results", type=Path, default=NEIGHBOURS, help="folder of the results")
    forces = config_options("md17.yaml", BUNDLED), options.seeds, _results_file("gffmerge")
    start = config_options("md17_chgnet.yaml", BUNDLED), options.seeds
    pretrained = *start, _results_file("gffmerge-pretrained")
    domains = config_options("six_domains.yaml", (EXPERTS_CONFIG_FOLDER,)), options.seeds
    planned = config_options(DEFAULT_CONFIG, BUNDLED), options.seeds, both, ways, folder
    gnnmerge = options.folder_options, seconds, _results_file("gnnmerge")
    graphs = config_options("gcc_tasks.yaml", BUNDLED), options.device, options.seeds
    return [
        ("gnnmerge", commands.study_gnnmerge, gnnmerge),
        ("gffmerge", commands.study_gffmerge, forces),
        ("gffmerge-pretrained", commands.study_gffmerge_pretrained, pretrained),
        ("gw-smm", commands.study_gw_smm, planned),
        ("experts", commands.study_experts, (*domains, _results_file("expert-merging"))),
        (
            "graphs",
            commands.study_graphs,
            (*graphs, options.processes, _results_file("generalisation")),
        ),
        ("supervised-experts", commands.study_supervised_experts, _supervised_options()),
        ("tied-adapters", commands.study_tied_adapters, _tied_options()),
        ("one-pass", commands.study_one_pass, _one_pass_options()),
        ("forests", commands.study_forests, _forest_options()),
        *_admet_studies(),
    ]


def _supervised_options() -> tuple[Option, ...]:
    config = config_options("moleculeace_short.yaml", BUNDLED)
    return config, options.device, options.seed, _results_file("supervised-experts")


def _tied_options() -> tuple[Option, ...]:
    seeds = option(
        "--alignment-seeds",
        type=int,
        nargs="+",
        default=[0, 1],
        metavar="SEED",
        help="one joint alignment per seed; `--seed` is that of teachers and pool",
    )
    config = config_options("moleculeace_tied.yaml", BUNDLED)
    return config, options.device, options.seed, seeds, _results_file("tied-adapters")


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
    measured = options.seeds, stage_options, options.tasks, group, methods, added
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
