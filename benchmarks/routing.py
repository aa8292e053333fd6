"""Experiments on where routing helps. Each is compared with the task's own adapter on the same
models, on validation and on test.

    python -m benchmarks.routing far few heldout groups joint --seed 0

It stands on the results of `gmerging compare` (work folder), and writes
`results/<setting>/routing-seed<N>.json`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.common import areas, parser, run_of, store
from merging.config.training import MultitaskConfig
from merging.data.molecule_dataset import load_smiles
from merging.run.models import expert, experts, single_task_model, unified_model, without_adapters
from merging.run.run import Run
from merging.run.scores import unified_forward
from merging.run.stages import finetuned_network, merged_network
from merging.studies.forests import ecfp4
from merging.targets.metrics import compute_outputs, roc_auc
from merging.training.alignment import align, alignment_loss, set_statistics
from merging.training.supervised import epoch_steps
from models.data.batch import GraphBatch, mean_readout
from models.experts.adapter import LayerOutputs, TaskAdapters, apply_norm, trace
from models.experts.expert import Expert
from models.experts.router import node_distances, routing_weights
from models.experts.unified import Routing, UnifiedModel
from models.transport.problem import Support

SMALL = ("bbbp", "bace", "clintox", "sider", "tox21")
"""Tasks for experiments that train adapters: those that take a minute or two each."""


def far(run: Run) -> dict[str, Any]:
    """Score test molecules in three groups of equal size by their largest Tanimoto similarity to a
    training molecule (ECFP4).

    Besides the scores: the weight of the task's own expert in each group, and its rank correlation
    with similarity, which tells whether the weight recognises dissimilar molecules.
    """
    model, found = unified_model(run), {}
    for k, task in enumerate(run.tasks):
        dataset = run.dataset(task)
        bits = torch.from_numpy(
            ecfp4(load_smiles(dataset, run.config.dataset_for(task), run.data, run.work / "data"))
        ).float()
        rows = dataset.split.test
        nearest = torch.cat(
            [
                tanimoto(rows_here, bits[dataset.split.train]).amax(1)
                for rows_here in bits[rows].split(256)
            ]
        )
        weight = compute_outputs(
            lambda batch, task=task, k=k: (
                model(batch, [task], "moe").routing_weights[task][:, :, k].mean(1)
            ),
            dataset.graphs,
            rows,
            run.device,
        )
        scores: dict[Routing, Tensor] = {
            routing: compute_outputs(
                unified_forward(run, model, task, routing), dataset.graphs, rows, run.device
            )
            for routing in ("own", "moe")
        }
        found[task] = {"correlation": round(float(spearmanr(nearest, weight).statistic), 3)}
        for name, third in zip(("far", "middle", "near"), nearest.argsort().chunk(3), strict=True):
            by_routing = {
                routing: round(roc_auc(dataset.labels[rows[third]], outputs[third]).mean, 5)
                for routing, outputs in scores.items()
            }
            found[task][name] = {
                "similarity": round(float(nearest[third].mean()), 3),
                "own_weight": round(float(weight[third].mean()), 4),
                **by_routing,
            }
        print("far", task, found[task], flush=True)
    return found


def tanimoto(left: Tensor, right: Tensor) -> Tensor:
    """Compute Tanimoto similarities of bit vectors (A, bits) and (B, bits): (A, B)."""
    shared = left @ right.T
    return shared / (left.sum(1)[:, None] + right.sum(1) - shared).clamp(min=1)


def few(run: Run) -> dict[str, Any]:
    """Score a task whose adapters were trained on only a few unlabelled molecules, among experts
    trained on all of theirs.
    """
    found: dict[str, Any] = {}
    for task in SMALL:
        dataset, settings = run.dataset(task), run.config.alignment_for(task)
        for count in (16, 64, 256):
            rows = dataset.split.train[
                torch.randperm(
                    len(dataset.split.train), generator=torch.Generator().manual_seed(run.seed)
                )[:count]
            ]
            checkpoint = run.work / f"few-{task}-{count}-{run.seed}.resume.pt"
            made = align(
                dataset.graphs,
                rows,
                finetuned_network(run, task),
                merged_network(run),
                settings,
                run.seed,
                checkpoint,
                run.device,
                task,
            )
            checkpoint.unlink()
            model = UnifiedModel(
                merged_network(run),
                experts(run) | {task: expert(run, task, made.adapters.state_dict())},
                run.config.router,
            )
            found.setdefault(task, {})[str(count)] = {
                routing: areas(run, model, task, routing) for routing in ("own", "moe")
            }
            print("few", task, count, found[task][str(count)], flush=True)
    return found


def heldout(run: Run) -> dict[str, Any]:
    """Score a task without adapters: the merged backbone alone, and the equal mixture of the other
    tasks' adapters.
    """
    found = {}
    for task in run.tasks:
        others = [expert(run, other).adapters for other in run.tasks if other != task]
        mixture = mean_adapters(run, others)
        dataset = run.dataset(task)
        set_statistics(
            mixture, merged_network(run), dataset.graphs, dataset.split.train, run.device
        )
        answering_for_it = expert(run, task, mixture.cpu().state_dict())
        found[task] = {
            "bare": areas(run, without_adapters(run, merged_network(run), task), task),
            "mean_of_others": areas(
                run, single_task_model(run, merged_network(run), task, answering_for_it), task
            ),
        }
        print("heldout", task, found[task], flush=True)
    return found


def mean_adapters(run: Run, adapters: Sequence[TaskAdapters]) -> TaskAdapters:
    """Build adapters that subtract the mean of the corrections of the given ones: a mixture of K
    adapters of rank r is one of rank K r.
    """
    made = TaskAdapters(run.config.shape, sum(expert.rank for expert in adapters))
    by_site = zip(*(expert.sites for expert in adapters), strict=True)
    for site, adapters_there in zip(made.sites, by_site, strict=True):
        site.down.data.copy_(torch.cat([adapter.down for adapter in adapters_there], 1))
        site.up.data.copy_(torch.cat([adapter.up for adapter in adapters_there]) / len(adapters))
    return made


def groups(run: Run) -> dict[str, Any]:
    """Score mixing among related tasks only: toxicity in assays and in patients, and the rest."""
    found = {}
    everyone = experts(run)
    for group in (("tox21", "toxcast", "sider", "clintox"), ("bbbp", "bace", "hiv", "muv")):
        model = UnifiedModel(
            merged_network(run), {task: everyone[task] for task in group}, run.config.router
        )
        for task in group:
            found[task] = {"group": areas(run, model, task, "moe")}
            print("groups", task, found[task], flush=True)
    return found


def joint(run: Run) -> dict[str, Any]:
    """Train all adapters further through the mixture that will answer; without labels and gate
    parameters.
    """
    torch.manual_seed(run.seed)
    tasks, backbone = run.tasks, merged_network(run).requires_grad_(False)
    adapters = [expert(run, task).adapters for task in tasks]
    teachers = [finetuned_network(run, task).requires_grad_(False) for task in tasks]
    optimizer = torch.optim.Adam(
        [parameter for own in adapters for parameter in own.parameters()], lr=3e-4, fused=True
    )
    few_of_each = {task: replace(run.dataset(task), most_per_epoch=512) for task in tasks}
    for epoch in range(3):
        for task, step in epoch_steps(few_of_each, MultitaskConfig(batch_size=32)):
            k, batch, settings = tasks.index(task), step.batch, run.config.alignment_for(task)
            loss = alignment_loss(
                mixed(run, backbone, adapters, k, batch),
                trace(teachers[k], batch),
                support_of(batch),
                settings,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print("joint epoch", epoch + 1, float(loss.detach()), flush=True)
    made: dict[str, Expert] = {
        task: expert(run, task, own.cpu().state_dict())
        for task, own in zip(tasks, adapters, strict=True)
    }
    model = UnifiedModel(backbone, made, run.config.router)
    found = {
        task: {routing: areas(run, model, task, routing) for routing in ("own", "moe")}
        for task in tasks
    }
    for task, scores in found.items():
        print("joint", task, scores, flush=True)
    return found


def support_of(batch: GraphBatch) -> Support:
    """Return the published support of a batch."""
    return Support.from_graph(batch.edge_index, batch.batch, batch.num_graphs)


def mixed(
    run: Run, backbone: Any, adapters: Sequence[TaskAdapters], k: int, batch: GraphBatch
) -> LayerOutputs:
    """Run the stream of task k under the mixture, with gradients to all adapters; routing weights
    are constants, as at inference.
    """
    router, support, convolutions = run.config.router, support_of(batch), []
    target = torch.tensor([k])

    def correct(layer: int, h: Tensor) -> Tensor:
        z = torch.stack([(h @ adapter.sites[layer].down).relu() for adapter in adapters], 1)
        up = torch.stack([adapter.sites[layer].up for adapter in adapters])
        with torch.no_grad():
            gram = torch.einsum("ird,jqd->ijrq", up, up)
            weights = routing_weights(
                node_distances(z.unsqueeze(1), gram, target, support, router),
                router.temperature,
                router.top_k,
            )[:, 0]
        convolutions.append(h - torch.einsum("nkr,nk,krd->nd", z, weights[batch.batch], up))
        return convolutions[-1]

    def normalise(layer: int, h: Tensor) -> Tensor:
        return apply_norm(
            backbone, layer, h, adapters[k].norm_mean[layer], adapters[k].norm_var[layer]
        )

    readout = mean_readout(backbone(batch, correct, normalise), batch)
    outputs = torch.stack([adapter.sites[-1](readout) for adapter in adapters], 1)
    distances = (outputs - outputs[:, k : k + 1]).abs().mean(-1).detach()
    weights = routing_weights(distances.unsqueeze(1), router.graph_temperature, router.top_k)[:, 0]
    return LayerOutputs(tuple(convolutions), readout - (weights.unsqueeze(-1) * outputs).sum(1))


def published(run: Run) -> dict[str, Any]:
    """Score the own and mixed answers of the finished model, the baseline of all experiments."""
    model = unified_model(run)
    return {
        task: {routing: areas(run, model, task, routing) for routing in ("own", "moe")}
        for task in run.tasks
    }


TRIES: dict[str, Callable[[Run], dict[str, Any]]] = {
    measure.__name__: measure for measure in (published, far, few, heldout, groups, joint)
}


def main() -> None:
    """Run the requested experiments; other results in the file stay."""
    options = parser(__doc__)
    options.add_argument("tries", nargs="+", choices=list(TRIES))
    arguments = options.parse_args()
    run = run_of(arguments)
    for name in arguments.tries:
        store(run, "routing", name, TRIES[name](run))


if __name__ == "__main__":
    main()
