"""What an answer costs: one expert, several, a merged one, and the competence that chooses among
them."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.func import functional_call

from merging.studies.experts.model import ExpertBank, merge_experts, route
from models.data.batch import GraphBatch

REPEATS = 30


def forward_seconds(bank: ExpertBank, batch: GraphBatch, k: int) -> dict[str, float]:
    """Median seconds, with as many threads as torch has: the ways take turns, so that a busy
    machine is busy for all of them.

    Returns:
        top1: one expert. ensemble: k experts and their mean. merge: of the weights alone. merged:
            merging and one forward.
        merged_kept: one forward with weights that were merged before. competence: K forwards and
            losses. Besides, nodes: how many the request has.
    """
    psi = bank.competence(batch).mean(1)
    alpha, best = route(psi, k), int(psi.argmax())
    states = bank.states()
    kept = merge_experts(states, alpha)
    ways: dict[str, Callable[[], object]] = {
        "top1": lambda: bank.experts[best](batch),
        "ensemble": lambda: bank.ensemble(alpha, batch),
        "merge": lambda: merge_experts(states, alpha),
        "merged": lambda: bank.merged(alpha, batch),
        "merged_kept": lambda: functional_call(bank.experts[0], kept, (batch,)),
        "competence": lambda: bank.competence(batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(REPEATS):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
    return {"nodes": batch.num_nodes, **{name: median(values) for name, values in seconds.items()}}
