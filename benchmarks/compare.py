"""Speed of G-Merging, ADMET-AI, chemprop, and the eight single-task models that merging replaces,
in turns in one run, with the same molecules and one thread each.

    python -m benchmarks.compare             # everything, about twenty minutes; the first time ten
                                             # more to install the peers
    python -m benchmarks.compare separate    # without the peers
    python -m benchmarks.compare reading     # reading beside RDKit's parser, and one molecule
    python -m benchmarks.compare summary     # only gathers the results of this and other scripts

Writes `benchmarks/results/peers.json`, `separate.json` and `reading.json`, and `summary.json` with
the headline figures of all scripts. Ratios are theirs to ours in speed (above 1 is in our favour),
but `*_time_ratio` and `memory_ratio` are ours divided by theirs, and `*to_parser` is our time
divided by RDKit's.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rdkit import Chem

from benchmarks.measuring import RELEASED, RESULTS, in_turns, machine, ratio, summary
from benchmarks.molecules import fixed_molecules, library_molecules
from benchmarks.peers import PEERS, Peer
from merging.data.files import read_json, write_json
from models.artifact import load_artifact, load_components
from models.compiled.model import CompiledModel
from models.data.molecule import collate
from models.data.smiles import featurize, featurize_all, read_graphs
from models.errors import MoleculeError
from models.experts.expert import Expert
from models.experts.router import RouterConfig
from models.experts.unified import Routing, UnifiedModel

SECTIONS = ("peers", "separate", "reading", "summary")
AIMS = {"read_to_parser": 1.5, "one_molecule_seconds": 0.002}
"""At most this many times RDKit's sanitising parser, and CPU seconds from a molecule's graph to the
probabilities of all tasks."""
_SINGLES = 100
_BATCH = 2000
ROUTINGS: tuple[Routing, ...] = ("own", "moe")


def answer(model: CompiledModel, smiles: Sequence[str], routing: Routing) -> int:
    """Compute probabilities of all tasks from SMILES.

    Returns:
        Number of molecules with an answer.
    """
    answered = 0
    for begin in range(0, len(smiles), _BATCH):
        batch = collate(
            [
                graph
                for graph in read_graphs(smiles[begin : begin + _BATCH])
                if not isinstance(graph, MoleculeError)
            ]
        )
        answered += int(
            torch.cat(list(model(batch, routing=routing).probabilities.values()), 1)
            .isfinite()
            .all(1)
            .sum()
        )
    return answered


def peers(smiles: Sequence[str], rounds: int) -> dict[str, Any]:
    """Measure molecules per CPU second in batch and seconds per single molecule, ours and peers in
    turns.
    """
    model = CompiledModel(load_artifact(RELEASED).model)
    counts = {"admet-ai": 200, "admet-ai-models": 200}
    names = [*(f"ours, {routing}" for routing in ROUTINGS), *PEERS]
    rates, walls, singles = ({name: list[float]() for name in names} for _ in range(3))
    with ExitStack() as stack:
        running = {name: stack.enter_context(Peer(name, threads=1)) for name in PEERS}
        information = {name: peer.info for name, peer in running.items()}
        for turn in range(rounds + 1):  # the first is a warm-up
            for routing in ROUTINGS:
                started, cpu = time.perf_counter(), time.process_time()
                answered = answer(model, smiles, routing)
                wall, cpu = time.perf_counter() - started, time.process_time() - cpu
                if turn:
                    rates[f"ours, {routing}"].append(answered / cpu)
                    walls[f"ours, {routing}"].append(answered / wall)
                    singles[f"ours, {routing}"] += [
                        _seconds(model, one, routing) for one in smiles[:50]
                    ]
            for name, peer in running.items():
                timing = peer.batch(list(smiles[: counts.get(name, 1000)]))
                seconds = peer.single(list(smiles[:20]))
                if turn:
                    rates[name].append(timing.molecules / timing.cpu_seconds)
                    walls[name].append(timing.molecules / timing.wall_seconds)
                    singles[name] += seconds
            print(
                "turn",
                turn,
                {name: round(values[-1]) for name, values in rates.items() if values},
                flush=True,
            )
    found: dict[str, Any] = {"machine": machine(1), "molecules": len(smiles), "peers": information}
    for name in rates:
        found[name] = {
            "per_cpu_second": summary(rates[name], 1),
            "per_second": summary(walls[name], 1),
            "one_molecule_seconds": summary(singles[name], 5),
        }
    ours = {routing: rates[f"ours, {routing}"] for routing in ROUTINGS}
    found["ratios"] = {
        name: {routing: ratio(ours[routing], rates[name]) for routing in ROUTINGS} for name in PEERS
    }
    latency = statistics.median(singles["ours, moe"])
    found["latency_ratios"] = {
        name: round(statistics.median(singles[name]) / latency, 2) for name in PEERS
    }
    return found


def separate_models() -> list[CompiledModel]:
    """Build the models that would be deployed without merging: eight compiled models, each with a
    backbone, BatchNorm and head, without adapters.

    Weights are copies of the merged model's, since time does not depend on their values.
    """
    components = load_components(RELEASED)
    models = []
    for task, expert in components.experts.items():
        single = Expert(components.manifest.backbone, 0, expert.label_names)
        single.adapters.norm_mean.copy_(expert.adapters.norm_mean)
        single.adapters.norm_var.copy_(expert.adapters.norm_var)
        single.head = deepcopy(expert.head)
        models.append(
            CompiledModel(
                UnifiedModel(deepcopy(components.backbone), {task: single}, RouterConfig())
            )
        )
    return models


def separate(smiles: Sequence[str], rounds: int) -> dict[str, Any]:
    """Measure seconds from graphs to probabilities, and memory, of eight single-task models in
    sequence and of one pass of the merged model."""
    graphs = [graph for graph in read_graphs(smiles) if not isinstance(graph, MoleculeError)]
    batches = [collate(graphs[begin : begin + _BATCH]) for begin in range(0, len(graphs), _BATCH)]
    ours, theirs = CompiledModel(load_artifact(RELEASED).model), separate_models()

    def run(models: Sequence[CompiledModel], routing: Routing) -> Callable[[], None]:
        def answer_separately() -> None:
            for model in models:
                for batch in batches:
                    model(batch, routing=routing)

        return answer_separately

    seconds = in_turns(
        {"separate": run(theirs, "own"), "own": run([ours], "own"), "moe": run([ours], "moe")},
        rounds,
    )
    memory = {"ours": ours.num_bytes, "separate": sum(model.num_bytes for model in theirs)}
    return {
        "machine": machine(1),
        "molecules": len(graphs),
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "own_time_ratio": ratio(seconds["own"], seconds["separate"]),
        "moe_time_ratio": ratio(seconds["moe"], seconds["separate"]),
        "bytes": memory,
        "memory_ratio": round(memory["ours"] / memory["separate"], 4),
    }


def reading(smiles: Sequence[str], rounds: int, data: Path) -> dict[str, Any]:
    """Measure reading beside RDKit's parser (sanitising), for molecules of the HIV set and of a
    screening library, and the pass for one molecule, CPU seconds of one core."""
    count = len(smiles)
    sets = {
        "hiv": smiles,
        "library": library_molecules(count, data),
        "library, stereo": library_molecules(count, data, stereo=True),
    }
    found: dict[str, Any] = {"machine": machine(1), "aims": AIMS, "molecules": count}
    for name, texts in sets.items():
        seconds = in_turns(
            {
                "parser": partial(_parse, texts),
                "graphs": partial(read_graphs, texts),
                "molecules": partial(featurize_all, texts),
            },
            rounds,
        )
        found[name] = {
            "parser_seconds": summary([value / count for value in seconds["parser"]], 7),
            "graphs_to_parser": ratio(seconds["graphs"], seconds["parser"]),
            "molecules_to_parser": ratio(seconds["molecules"], seconds["parser"]),
        }
    found["one_molecule"] = one_molecule(smiles[:_SINGLES], rounds)
    return found


def one_molecule(smiles: Sequence[str], rounds: int) -> dict[str, Any]:
    """Measure CPU seconds of one molecule at a time: reading, and the pass for all tasks; ratios
    are to RDKit's parser."""
    model = CompiledModel(load_artifact(RELEASED).model)
    graphs = [graph for graph in read_graphs(smiles) if not isinstance(graph, MoleculeError)]

    def answer_singly(routing: Routing) -> None:
        for graph in graphs:
            torch.cat(list(model(collate([graph]), routing=routing).probabilities.values()), 1)

    seconds = in_turns(
        {
            "parser": partial(_parse, smiles),
            "reading": lambda: [featurize(text) for text in smiles],
            **{routing: partial(answer_singly, routing) for routing in ROUTINGS},
        },
        rounds,
    )
    return {
        name: {
            "seconds": summary([value / len(smiles) for value in values], 7),
            "to_parser": ratio(values, seconds["parser"]),
        }
        for name, values in seconds.items()
    }


def _parse(smiles: Sequence[str]) -> None:
    for text in smiles:
        Chem.MolFromSmiles(text)


def gathered() -> dict[str, Any]:
    """Collect the headline figures of all measurements so far."""
    files = {
        name: read_json(RESULTS / f"{name}.json") or {}
        for name in ("peers", "separate", "reading", "transport", "http", "floor")
    }

    def of(name: str, *path: str) -> Any:
        found: Any = files[name]
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    # the variant of chemprop with the smallest ratio is its fastest
    best = min(
        (name for name in PEERS if name.startswith("chemprop")),
        key=lambda name: of("peers", "ratios", name, "moe", "median") or 0,
    )
    return {
        "admet_ai": {
            "batch_ratio": of("peers", "ratios", "admet-ai", "moe", "median"),
            "latency_ratio": of("peers", "latency_ratios", "admet-ai"),
        },
        "chemprop": {
            "batch_ratio": of("peers", "ratios", "chemprop", "moe", "median"),
            "own_batch_ratio": of("peers", "ratios", "chemprop", "own", "median"),
            "fastest": best,
            "fastest_batch_ratio": of("peers", "ratios", best, "moe", "median"),
            "fastest_own_batch_ratio": of("peers", "ratios", best, "own", "median"),
        },
        "separate_models": {
            "own_time_ratio": of("separate", "own_time_ratio", "median"),
            "moe_time_ratio": of("separate", "moe_time_ratio", "median"),
            "memory_ratio": of("separate", "memory_ratio"),
        },
        "twd": {
            "dense_ratio": of("transport", "molecules", "ways", "sinkhorn_dense_log", "times_ours"),
            "best_dense_ratio": of(
                "transport", "molecules", "ways", "sinkhorn_dense_scaling_by_size", "times_ours"
            ),
            "pot_ratio": of("transport", "molecules", "ways", "exact_pot", "times_ours"),
        },
        "reading": {
            name: {
                what: of("reading", name, what, "median")
                for what in ("graphs_to_parser", "molecules_to_parser")
            }
            for name in ("hiv", "library", "library, stereo")
        },
        "one_molecule_seconds": {
            routing: of("reading", "one_molecule", routing, "seconds", "median")
            for routing in ROUTINGS
        },
        "http": {
            name: of("http", "moe", name, "median")
            for name in (
                "throughput_share",
                "overhead_seconds",
                "one_molecule_p50_seconds",
                "one_molecule_to_constant",
            )
        },
        # The arithmetic of every node, and the share that remains with classes of nodes.
        "floor": {
            "moe_time_ratio": of("floor", "moe", "plain_time_ratio", "median"),
            "own_time_ratio": of("floor", "own", "plain_time_ratio", "median"),
            "moe_class_time_ratio": of("floor", "moe", "time_ratio", "median"),
            "own_class_time_ratio": of("floor", "own", "time_ratio", "median"),
        },
    }


def _seconds(model: CompiledModel, smiles: str, routing: Routing) -> float:
    started = time.perf_counter()
    answer(model, [smiles], routing)
    return time.perf_counter() - started


def main() -> None:
    """Measure the requested sections and gather."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("sections", nargs="*", help=f"of {SECTIONS}; all if none is named")
    options.add_argument("--molecules", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--data", type=Path, default=Path("../shared/data"))
    options.add_argument("--results", type=Path, default=RESULTS, help="folder for trials")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    read = partial(reading, data=arguments.data)
    for name, measure in (("reading", read), ("separate", separate), ("peers", peers)):
        if name in (arguments.sections or SECTIONS):
            smiles = fixed_molecules(arguments.molecules, arguments.data)
            found = measure(smiles, arguments.rounds)
            print(name, found, flush=True)
            write_json(arguments.results / f"{name}.json", found)
    if arguments.results == RESULTS:
        write_json(RESULTS / "summary.json", gathered())


if __name__ == "__main__":
    main()
