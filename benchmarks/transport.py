"""Speed of the topology-aware Wasserstein distance: ours on the edge list, the published recipe on
N x N matrices, and POT's exact solver.

    python -m benchmarks.transport [--quick]

No solver is timed before its answer is compared with the others'. One thread; solvers are measured
in turns. Writes `results/transport.json`.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ot
import torch
from scipy.sparse import coo_matrix
from torch import Tensor

from benchmarks.growth import RELEASE, RESULTS, interleaved, slope, surroundings
from benchmarks.molecules import fixed_molecules
from merging.data.files import write_json
from models.artifact import load_components
from models.compiled.batch import CompiledBatch
from models.compiled.transport import SIMD_WIDTH, transport_distances
from models.data.molecule import MolGraph, collate
from models.data.smiles import featurize
from models.experts.bank import AdapterBank
from models.experts.router import RouterConfig, node_distances
from models.transport.problem import Support
from models.transport.twd import cosine_cost, twd
from tests.oracles_transport import dense_cost, dense_mask, published_sinkhorn
from tests.strategies import GraphCase

TOLERANCE = {"sinkhorn": 1e-5, "exact": 1e-5, "router": 2e-5}
"""Largest difference between two answers of one kind; distances are in [0, 1], and ours are summed
in float32."""
# the paper's, and the defaults of `twd` and of the router
_EPSILON, _STOP, _MAX_ITERS = 0.1, 0.1, 100
_SLOW_SECONDS = 3.0  # a solver that takes longer gets no larger graph
_ROUNDS_SECONDS = 8.0  # for all repeats of a solver
_DENSE_NODES = 10_000  # more need over 8 GB
_CHUNK = 32


def dense(case: GraphCase, domain: Literal["log", "scaling"]) -> Tensor:
    """Compute the published recipe on padded N x N matrices: in the log domain as published, or in
    scaling form, as matrix-vector products.

    Each graph stops by itself, for the same answer as ours. A row of the padding sends its mass to
    itself at no cost.

    Returns:
        (G,).
    """
    sizes = case.batch.bincount(minlength=case.num_graphs)
    position = torch.arange(len(case.batch)) - (sizes.cumsum(0) - sizes)[case.batch]
    width, (source, target) = int(sizes.max()), case.edge_index
    slots = case.h.new_zeros(2, case.num_graphs, width, case.h.shape[1])
    for side, h in zip(slots, (case.h, case.h_ref), strict=True):
        side[case.batch, position] = torch.nn.functional.normalize(h, dim=1)
    cost = torch.bmm(slots[0], slots[1].mT).neg_().add_(1).clamp_(0, 2).div_(2)
    real = torch.arange(width) < sizes[:, None]
    cost.diagonal(dim1=1, dim2=2)[~real] = 0
    mask = torch.eye(width, dtype=torch.bool).repeat(case.num_graphs, 1, 1)
    mask[case.batch[source], position[source], position[target]] = True
    kernel = (
        torch.where(mask, cost / -_EPSILON, -math.inf)
        if domain == "log"
        else (cost / -_EPSILON).exp_().mul_(mask)
    )
    log_mass = -sizes[:, None].to(cost.dtype).log()
    (phi, psi) = cost.new_zeros(2, *real.shape)
    active = torch.ones_like(real[:, :1])

    def log_sums(potential: Tensor, dim: int) -> Tensor:
        if domain == "log":
            return torch.logsumexp(kernel + potential.unsqueeze(3 - dim), dim)
        vector = potential.exp().unsqueeze(dim)
        return (
            (torch.bmm(kernel, vector) if dim == 2 else torch.bmm(vector, kernel))
            .squeeze(dim)
            .log_()
        )

    for _ in range(_MAX_ITERS):
        update = log_mass - log_sums(psi, 2)
        change = _EPSILON * ((update - phi).abs() * real).sum(1, keepdim=True)
        phi = torch.where(active, update, phi)
        psi = log_mass - log_sums(phi, 1)
        active = active & (change >= _STOP)
        if not active.any():
            break
    plan = kernel.exp_() if domain == "log" else kernel
    return torch.bmm(phi.exp()[:, None], plan.mul_(cost)).squeeze(1).mul_(psi.exp()).sum(1)


def pot_problems(case: GraphCase) -> list[coo_matrix]:
    """Convert each graph's cost to a sparse matrix for POT."""
    support = Support.from_graph(*case.graph)
    graphs, problems = torch.arange(case.num_graphs + 1), []
    cost = cosine_cost(case.h, case.h_ref, support).double().numpy()
    entries, nodes = (
        torch.searchsorted(graph_of, graphs).tolist()
        for graph_of in (support.graph_of_entry, case.batch)
    )
    for graph in range(case.num_graphs):
        entries_here = slice(entries[graph], entries[graph + 1])
        first = nodes[graph]
        size = nodes[graph + 1] - nodes[graph]
        problems.append(
            coo_matrix(
                (
                    cost[entries_here],
                    (
                        support.rows[entries_here].numpy() - first,
                        support.cols[entries_here].numpy() - first,
                    ),
                ),
                shape=(size, size),
            )
        )
    return problems


def pot(problems: list[coo_matrix]) -> Tensor:
    """Compute the optimum of each problem by POT's network simplex: (G,) float64."""
    uniform = (np.full(problem.shape[0], 1 / problem.shape[0]) for problem in problems)
    return torch.tensor(
        [
            float(ot.emd2(mass, mass, problem, numItermax=10**8))
            for mass, problem in zip(uniform, problems, strict=True)
        ]
    )


def ways_for(case: GraphCase) -> dict[str, Callable[[], Tensor]]:
    """Return the solvers of a case by name; the name begins with the problem that is solved. POT
    gets its costs ready, and `by_size` its chunks of graphs.
    """
    problems, chunks = pot_problems(case), split(case)
    ways: dict[str, Callable[[], Tensor]] = {
        "sinkhorn_ours": lambda: twd(*case.args).cost,
        "exact_ours": lambda: twd(*case.args, solver="exact").cost,
        "exact_pot": lambda: pot(problems),
        "sinkhorn_dense_log": lambda: dense(case, "log"),
        "sinkhorn_dense_scaling": lambda: dense(case, "scaling"),
    }
    if len(chunks) > 1:
        ways["sinkhorn_dense_log_by_size"] = lambda: torch.cat(
            [dense(chunk, "log") for chunk in chunks]
        )
        ways["sinkhorn_dense_scaling_by_size"] = lambda: torch.cat(
            [dense(chunk, "scaling") for chunk in chunks]
        )
    return ways


def split(case: GraphCase) -> list[GraphCase]:
    """Split the graphs of a case into chunks of 32, in order."""
    chunks = []
    for first in range(0, case.num_graphs, _CHUNK):
        nodes = (case.batch >= first) & (case.batch < first + _CHUNK)
        edges = case.edge_index[:, nodes[case.edge_index[0]]] - int(nodes.nonzero()[0])
        chunks.append(
            GraphCase(
                case.h[nodes],
                case.h_ref[nodes],
                edges,
                case.batch[nodes] - first,
                min(_CHUNK, case.num_graphs - first),
            )
        )
    return chunks


def molecule_case(graphs: list[MolGraph]) -> GraphCase:
    """Embed the same molecules for two tasks: the third convolution of the release, with each
    task's adapters.
    """
    artifact, batch = load_components(RELEASE), collate(graphs)
    with torch.inference_mode():
        h, h_ref = (
            artifact.experts[task].adapters(artifact.backbone, batch).convolutions[2].clone()
            for task in ("tox21", "hiv")
        )
    return GraphCase(h, h_ref, batch.edge_index, batch.batch, batch.num_graphs)


def random_case(nodes: int) -> GraphCase:
    """Build one graph with twice as many random edges as nodes, and embeddings of width 300 that
    share a component.
    """
    generator = torch.Generator().manual_seed(nodes)
    pairs = torch.randint(nodes, (2, 2 * nodes), generator=generator)
    pairs = pairs[:, pairs[0] != pairs[1]]
    common, *noises = torch.randn(3, nodes, 300, generator=generator)
    h, h_ref = (common.add(noise).relu_() for noise in noises)
    return GraphCase(
        h, h_ref, torch.cat([pairs, pairs.flip(0)], 1), torch.zeros(nodes, dtype=torch.int64), 1
    )


def check(answers: Mapping[str, Tensor]) -> dict[str, float]:
    """Find the largest difference from ours for each kind of problem.

    Raises:
        AssertionError: it is above `TOLERANCE`.
    """
    found: dict[str, float] = {}
    for name, answer in answers.items():
        kind = name.split("_")[0]
        if f"{kind}_ours" in answers:
            difference = float((answer.double() - answers[f"{kind}_ours"].double()).abs().max())
            found[kind] = max(found.get(kind, 0.0), difference)
            assert difference <= TOLERANCE[kind], (
                f"{name}: got answers {difference:.1e} from ours,"
                f" expected at most {TOLERANCE[kind]}"
            )
    return found


def check_oracle(case: GraphCase, count: int) -> float:
    """Find the largest difference of `dense` from the oracle of the tests, for some of the
    graphs.
    """
    answers, found = dense(case, "log").tolist(), 0.0
    for graph in range(0, case.num_graphs, case.num_graphs // count):
        one = case.single_graph(graph)
        expected = published_sinkhorn(
            dense_cost(one.h, one.h_ref), dense_mask(one, 0), _EPSILON, _STOP, _MAX_ITERS
        )[0]
        found = max(found, abs(answers[graph] - expected))
    assert found <= TOLERANCE["sinkhorn"], (
        f"got a dense recipe {found:.1e} from the oracle, expected at most {TOLERANCE['sinkhorn']}"
    )
    return found


def measure_molecules(smiles: list[str], repeats: int) -> dict[str, Any]:
    """Measure all solvers on a batch of real molecules, sorted by size, so that chunks of 32 need
    little padding.
    """
    graphs = sorted((featurize(text).graph for text in smiles), key=lambda graph: graph.num_nodes)
    case = molecule_case(graphs)
    difference, ways = {"dense_from_oracle": check_oracle(case, 12)}, ways_for(case)
    difference |= check({name: way() for name, way in ways.items()})
    timings = interleaved(ways, repeats)
    for name, timing in timings.items():
        timing["times_ours"] = (
            timing["median_seconds"] / timings[f"{name.split('_')[0]}_ours"]["median_seconds"]
        )
    about = {
        "molecules": len(graphs),
        "nodes": len(case.h),
        "largest": graphs[-1].num_nodes,
        "edges": case.edge_index.shape[1],
    }
    return about | {"largest_difference": difference, "ways": timings}


def measure_sizes(sizes: list[int], repeats: int) -> dict[str, Any]:
    """Measure single random graphs, each solver up to its largest feasible size, and fit its growth
    beyond 1,000 nodes.
    """
    rows: list[dict[str, Any]] = []
    slow: set[str] = set()
    for nodes in sizes:
        case = random_case(nodes)
        ways = {
            name: way
            for name, way in ways_for(case).items()
            if name not in slow and (nodes <= _DENSE_NODES or "dense" not in name)
        }
        difference = check({name: way() for name, way in ways.items()})
        timings = interleaved(ways, repeats, _ROUNDS_SECONDS)
        slow |= {
            name for name, timing in timings.items() if timing["median_seconds"] > _SLOW_SECONDS
        }
        about = {
            "nodes": nodes,
            "edges": case.edge_index.shape[1],
            "sweeps": int(twd(*case.args).num_iters[0]),
        }
        rows.append(about | {"largest_difference": difference, "ways": timings})
        print(
            nodes,
            {name: round(timing["median_seconds"], 5) for name, timing in timings.items()},
            flush=True,
        )
    largest, slopes = {}, {}
    for name in rows[0]["ways"]:
        seen = [row for row in rows if name in row["ways"]]
        largest[name], far = seen[-1]["nodes"], [row for row in seen if row["nodes"] >= 1000]
        edges = [row["edges"] for row in far]
        seconds = [row["ways"][name]["median_seconds"] for row in far]
        slopes[name] = slope(edges, seconds)
        if name == "sinkhorn_ours":
            slopes[f"{name}_per_sweep"] = slope(
                edges, [value / row["sweeps"] for value, row in zip(seconds, far, strict=True)]
            )
    return {"largest_nodes": largest, "slope_from_1000_nodes": slopes, "graphs": rows}


def measure_router(smiles: list[str], repeats: int, rank: int = 10) -> dict[str, Any]:
    """Measure all transport problems of one layer: 8 streams, 8 experts, the release's adapters cut
    to a rank. Supports and weights are given.
    """
    artifact, batch = load_components(RELEASE), collate([featurize(text).graph for text in smiles])
    released = [expert.adapters for expert in artifact.experts.values()][:SIMD_WIDTH]
    # the adapters after the fourth layer
    bank = AdapterBank([adapters.node_adapters[3] for adapters in released])
    experts = torch.arange(len(released))
    with torch.inference_mode():
        h = torch.stack(
            [adapters(artifact.backbone, batch).convolutions[3] for adapters in released], 1
        )
        z = torch.einsum("ntd,dkr->ntkr", h, bank.down[:, :, :rank]).relu_()
        up = bank.up[:, :rank]
    gram = torch.einsum("ird,jqd->ijrq", up, up)
    support = Support.from_graph(batch.edge_index, batch.batch, batch.num_graphs)
    compiled = CompiledBatch.from_batch(batch)
    projections = z.permute(0, 3, 1, 2).contiguous().numpy()
    cross_gram = gram.permute(2, 3, 1, 0).contiguous()
    self_gram = torch.einsum("iipq->pqi", gram).unsqueeze(2).expand(cross_gram.shape).contiguous()
    graphs = np.arange(len(z)), *compiled.edges, compiled.graph_starts
    problem = (
        projections,
        self_gram.numpy(),
        cross_gram.numpy(),
        experts.numpy(),
        *graphs,
        _EPSILON,
        _STOP,
        _MAX_ITERS,
    )
    ways: dict[str, Callable[[], Tensor]] = {
        "router_ours": lambda: torch.from_numpy(transport_distances(*problem)),
        "router_torch": lambda: node_distances(z, gram, experts, support, RouterConfig()),
    }
    difference = check({name: way() for name, way in ways.items()})
    timings = interleaved(ways, repeats)
    about = {
        "molecules": len(smiles),
        "streams": len(experts),
        "experts": len(experts),
        "rank": rank,
        "largest_difference": difference,
    }
    ratio = timings["router_torch"]["median_seconds"] / timings["router_ours"]["median_seconds"]
    return about | {"torch_times_ours": ratio, "ways": timings}


def main() -> None:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repeats, small sizes")
    parser.add_argument(
        "--output",
        type=Path,
        help="default: benchmarks/results/transport.json, or work/transport.json where quick",
    )
    arguments = parser.parse_args()
    output = arguments.output or (Path("work") if arguments.quick else RESULTS) / "transport.json"
    torch.set_num_threads(1)
    quick = arguments.quick
    found = surroundings() | {"epsilon": _EPSILON, "tolerance": _STOP, "agreement": TOLERANCE}
    smiles, repeats = fixed_molecules(64 if quick else 512), 2 if quick else 7
    found["molecules"] = measure_molecules(smiles, repeats)
    print(
        {
            name: f"{timing['times_ours']:.1f} x ours"
            for name, timing in found["molecules"]["ways"].items()
        },
        flush=True,
    )
    found["router"] = measure_router(smiles[:64], repeats)
    print(f"router: torch {found['router']['torch_times_ours']:.1f} x ours", flush=True)
    found["sizes"] = measure_sizes(
        [100, 300, 1000] if quick else [100, 300, 1000, 3000, 10_000, 30_000, 100_000], repeats
    )
    print(found["sizes"]["slope_from_1000_nodes"], found["sizes"]["largest_nodes"], flush=True)
    write_json(output, found)


if __name__ == "__main__":
    main()
