"""Routing "merged", which averages the experts' parameters by the router's weights: accuracy and
time compared with "own" and "moe".

    python -m benchmarks.merged_routing accuracy units gap seconds

Reads the finished stages of the release's setting (work folder); scores that are in the results are
not measured again. Writes `results/neighbours/merged-routing.json`; `table` makes the tables of
`docs/merged-routing.md` from it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.common import parser, run_of
from benchmarks.measuring import in_turns, machine, ratio, summary
from benchmarks.molecules import fixed_molecules
from merging.data.files import read_json, write_json
from merging.run.models import unified_model
from merging.run.run import Run
from merging.run.scores import all_adapters, environment, evaluate
from merging.run.stage import Stage
from merging.run.store import StageResult
from merging.targets.metrics import batches
from models.compiled.model import CompiledModel
from models.compiled.streams import CompiledStreams
from models.data.batch import GraphBatch
from models.data.molecule import collate
from models.data.smiles import read_graph
from models.experts import unified as plain
from models.experts.bank import AdapterBank
from models.experts.unified import Routing, UnifiedModel

RESULT = Path("results/neighbours/merged-routing.json")
LAYERS: dict[str, int | None] = {"last layer": 1, "all layers": None}
"""Number of last layers that mix, besides the graph site: as released, and as published."""
CASES: dict[str, Routing] = {
    "own": "own",
    "moe": "moe",
    "merged": "merged",
    "merged, weights of each site": "merged",
}
EACH_SITE = "merged, weights of each site"
MOLECULES = 250


class _EachSite(plain._AdapterPass):
    """Pass that averages parameters by the weights of every site, at the cost of `moe`. It
    separates the loss of averaging from that of shared weights.
    """

    def _fuse(self, site: int, h: Tensor, weights: Tensor) -> Tensor:
        left = super()._fuse(site, h, weights)
        self.shared = None
        return left


class _Compared(_EachSite):
    """Pass that records how far the averaged adapter's correction f' is from the average f of the
    adapters' corrections, |f' - f| / |f|, and |f_k - f| / |f| for comparison.
    """

    found: ClassVar[list[tuple[int, float, float]]] = []

    def _fuse(self, site: int, h: Tensor, weights: Tensor) -> Tensor:
        left = super()._fuse(site, h, weights)
        bank, of_graphs = self.bank(site), site == len(self.node_banks)
        by_row = weights if of_graphs else weights[self.batch.batch]
        mixed = bank.mix(bank.project(h).expand(-1, len(self.experts), -1, -1), by_row)
        target = bank.target_outputs(h, self.experts)
        size = mixed.norm()
        self.found.append(
            (site, float((h - left - mixed).norm() / size), float((target - mixed).norm() / size))
        )
        return left


@contextmanager
def stream(kind: type[plain._AdapterPass]) -> Iterator[None]:
    """Replace the stream of the plain model in a `with` block. With one that routes at every site
    the compiled model does so too.
    """
    kept = plain._AdapterPass, CompiledStreams.known_weights
    plain._AdapterPass = kind  # type: ignore[misc]
    if issubclass(kind, _EachSite):
        CompiledStreams.known_weights = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        plain._AdapterPass, CompiledStreams.known_weights = kept  # type: ignore[misc, method-assign]


def stream_of(case: str) -> type[plain._AdapterPass]:
    """Return the stream of a case."""
    return _EachSite if case == EACH_SITE else plain._AdapterPass


def accuracy(run: Run) -> dict[str, Any]:
    """Compute ROC-AUC by layers, case and task, on validation and test."""
    found: dict[str, Any] = {}
    for layers, count in LAYERS.items():
        varied = run.with_changes(router={"mixed_layers": count})
        compiled = CompiledModel(unified_model(varied))
        for case, routing in CASES.items():
            if case == "own" and layers != "last layer":
                continue  # it does not mix
            name = "own" if case == "own" else f"{case}, {layers}"
            for task in run.tasks:
                make = partial(scores, varied, compiled, task, routing)
                stage = Stage(
                    f"merged_routing/{task}-compiled",
                    run.seed,
                    (varied.config.routing, case),
                    all_adapters(varied),
                    make,
                )
                with stream(stream_of(case)):
                    found.setdefault(name, {})[task] = run.result(stage).record
            print(name, means(found[name]), flush=True)
    return found


def scores(run: Run, model: CompiledModel, task: str, routing: Routing, _: Path) -> StageResult:
    """ROC-AUC of a task on the validation and test molecules."""

    def logits(batch: GraphBatch) -> Tensor:
        return model(batch, [task], routing).logits[task]

    found = evaluate(run, logits, task)
    return StageResult(record={subset: values["roc_auc"] for subset, values in found.items()})


def means(by_task: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Average over the tasks, on validation and on test."""
    return {
        subset: round(sum(scores[subset] for scores in by_task.values()) / len(by_task), 5)
        for subset in ("valid", "test")
    }


def units(run: Run) -> dict[str, Any]:
    """Compare unit j of one task's adapter with unit j of another's: by site, means over pairs of
    tasks.

    Returns:
        By site: `same`, cosine of the columns of `down` with the same number; `other`, with another
            number; `found`, share of units whose most similar unit in the other adapter has the
            same number (1 / r by chance).
    """
    model = unified_model(run)
    banks = (*model.node_banks, model.graph_bank)
    return {name: of_site(bank) for name, bank in zip(model.site_names, banks, strict=True)}


def of_site(bank: AdapterBank) -> dict[str, float]:
    """Compute `units` of one site."""
    down = torch.nn.functional.normalize(bank.down, dim=0)
    # (pairs, r, r)
    cosines = torch.einsum("dir,djq->ijrq", down, down)[~torch.eye(down.shape[1], dtype=torch.bool)]
    same = torch.eye(down.shape[2], dtype=torch.bool).expand_as(cosines)
    hits = cosines.argmax(2) == torch.arange(down.shape[2])
    return {
        name: round(float(value.mean()), 4)
        for name, value in (
            ("same", cosines[same]),
            ("other", cosines[~same]),
            ("found", hits.float()),
        )
    }


def gap(run: Run) -> dict[str, Any]:
    """Measure by layers and site how far averaged parameters are from averaged outputs, on the test
    molecules of all tasks (at most 256 of each).
    """
    found: dict[str, Any] = {}
    for layers, count in LAYERS.items():
        model = unified_model(run.with_changes(router={"mixed_layers": count}))
        _Compared.found = []
        with stream(_Compared), torch.inference_mode():
            for task in run.tasks:
                rows = run.dataset(task).split.test
                chosen = rows[torch.linspace(0, len(rows) - 1, min(len(rows), 256)).long()]
                for _, batch in batches(run.dataset(task).graphs, chosen, 256):
                    model(batch, [task], "merged")
        for site, name in enumerate(model.site_names):
            values = torch.tensor([row[1:] for row in _Compared.found if row[0] == site])
            if len(values):
                merged, target = values.mean(0).tolist()
                found.setdefault(layers, {})[name] = {
                    "merged": round(merged, 4),
                    "own": round(target, 4),
                }
    return found


def seconds(run: Run, rounds: int = 3) -> dict[str, Any]:
    """Measure CPU milliseconds of a pass over 250 molecules, all tasks, one thread, in turns: the
    plain model, and the compiled one for context.
    """
    batch = collate([read_graph(text) for text in fixed_molecules(MOLECULES, run.data, run.work)])
    found: dict[str, Any] = {"machine": machine(1), "molecules": MOLECULES, "rounds": rounds}
    with torch.inference_mode():
        found["fusing"] = fusing(unified_model(run).node_banks[0], batch, 9)
    print("fusing", found["fusing"], flush=True)
    for layers, count in LAYERS.items():
        model = unified_model(run.with_changes(router={"mixed_layers": count}))
        compiled = CompiledModel(model)
        cases = {f"plain, {case}": one_pass(model, batch, case) for case in CASES}
        cases |= {f"compiled, {case}": one_pass(compiled, batch, case) for case in CASES}
        timings = in_turns(cases, rounds)
        found[layers] = {
            name: {
                "milliseconds": summary([value * 1000 for value in values], 1),
                "of_moe": ratio(values, timings[f"{name.split(',')[0]}, moe"]),
                "of_own": ratio(values, timings[f"{name.split(',')[0]}, own"]),
            }
            for name, values in timings.items()
        }
        print(
            layers,
            {
                name: (timing["milliseconds"]["median"], timing["of_moe"]["median"])
                for name, timing in found[layers].items()
            },
            flush=True,
        )
    return found


def fusing(bank: AdapterBank, batch: GraphBatch, rounds: int) -> dict[str, Any]:
    """Measure averaged parameters applied molecule by molecule, against all rows projected by all
    experts and then weighted. The numbers are the same.
    """
    experts, rank, width = bank.up.shape
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(batch.num_nodes, experts, width, generator=generator)
    weights = torch.rand(batch.num_graphs, experts, experts, generator=generator).softmax(-1)
    sizes = torch.bincount(batch.batch).tolist()

    def each_molecule() -> Tensor:
        return bank.fuse(h, weights, sizes)

    def all_experts() -> Tensor:
        by_row = weights[batch.batch]
        seen = (h @ bank.down.flatten(1)).unflatten(2, (experts, rank))
        z = torch.einsum("ntkr,ntk->ntr", seen, by_row).relu()
        return (z.unsqueeze(2) * by_row.unsqueeze(3)).flatten(2) @ bank.up.flatten(0, 1)

    torch.testing.assert_close(each_molecule(), all_experts(), rtol=1e-4, atol=1e-4)
    timings = in_turns({"each molecule": each_molecule, "all experts": all_experts}, rounds)
    milliseconds = {
        name: summary([value * 1000 for value in values], 1) for name, values in timings.items()
    }
    return milliseconds | {"ratio": ratio(timings["all experts"], timings["each molecule"])}


def one_pass(
    model: UnifiedModel | CompiledModel, batch: GraphBatch, case: str
) -> Callable[[], None]:
    """Return a pass of a model over all tasks, as a function."""

    def run() -> None:
        with stream(stream_of(case)), torch.inference_mode():
            model(batch, routing=CASES[case])

    return run


def table(found: Mapping[str, Any]) -> str:
    """Format the tables of the documentation page in Markdown, from the results."""
    lines = [
        *_accuracy_table(found["accuracy"]),
        "",
        *_seconds_table(found["seconds"]),
        "",
        (
            "How far from the average of what the adapters subtract: averaged parameters, and the"
            " own adapter alone (relative L2 norm):"
        ),
        "",
    ]
    lines += ["| layers that mix | site | averaged parameters | own adapter |", "|---|---|---|---|"]
    lines += [
        f"| {layers} | {site} | {values['merged']:.3f} | {values['own']:.3f} |"
        for layers, sites in found["gap"].items()
        for site, values in sites.items()
    ]
    lines += [
        "",
        (
            "Units of the adapters (columns of `down`), pairs of tasks: cosine of units with the"
            " same number, with other numbers, and how often the most similar unit of the other"
            " adapter has the same number:"
        ),
        "",
    ]
    lines += ["| site | same number | other number | found |", "|---|---|---|---|"]
    lines += [
        f"| {site} | {values['same']:.3f} | {values['other']:.3f} | {values['found']:.3f} |"
        for site, values in found["units"].items()
    ]
    return "\n".join(lines)


def _accuracy_table(by_case: Mapping[str, Any]) -> list[str]:
    """Format test ROC-AUC by case and task, with means on test and validation."""
    tasks = list(by_case["own"])
    lines = [
        "Test ROC-AUC, in percent:",
        "",
        f"| | {' | '.join(tasks)} | test average | validation average |",
        "|---" * (len(tasks) + 3) + "|",
    ]
    for name, by_task in by_case.items():
        average = means(by_task)
        cells = [f"{100 * by_task[task]['test']:.2f}" for task in tasks] + [
            f"**{100 * average['test']:.2f}**",
            f"{100 * average['valid']:.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _seconds_table(by_layers: Mapping[str, Any]) -> list[str]:
    """Format the time of a pass by mixing layers and case, with ratios to `moe` and `own`."""
    lines = [
        "CPU milliseconds of a pass over 250 molecules, all tasks, one thread (median of the"
        " rounds; ratios round by round, with their range):",
        "",
        "| layers that mix | | milliseconds | of `moe` | of `own` |",
        "|---|---|---|---|---|",
    ]
    for layers in LAYERS:
        for name, timing in by_layers[layers].items():
            of_moe, of_own = (
                f"{timing[of]['median']:.2f} ({timing[of]['low']:.2f} to {timing[of]['high']:.2f})"
                for of in ("of_moe", "of_own")
            )
            lines.append(
                f"| {layers} | {name} | {timing['milliseconds']['median']:.0f} | {of_moe} |"
                f" {of_own} |"
            )
    return lines


SECTIONS: dict[str, Callable[[Run], dict[str, Any]]] = {
    measure.__name__: measure for measure in (accuracy, units, gap, seconds)
}


def main() -> None:
    """Measure the requested sections and write; other results in the file stay."""
    options = parser(__doc__)
    options.add_argument("sections", nargs="*", help=f"of {list(SECTIONS)}; all if none is named")
    options.set_defaults(config=Path("gcn_supervised_contextpred_rank10.yaml"), seed=1)
    arguments = options.parse_args()
    run = run_of(arguments)
    found = read_json(RESULT) or {}
    found |= {
        "what": (
            "routing merged (experts' parameters averaged by the router's weights) beside own and"
            " moe, eight MoleculeNet tasks"
        ),
        "settings": {
            "config": run.config.setting,
            "router": run.config.router.model_dump(),
            "layers": LAYERS,
        },
        "seeds": [run.seed],
        "environment": environment(),
    }
    for name in arguments.sections or SECTIONS:
        found[name] = SECTIONS[name](run)
        write_json(RESULT, found)


if __name__ == "__main__":
    main()
