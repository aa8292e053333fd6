"""The time of an answer by one expert, by an ensemble and by a merged expert, and of computing the
competence."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.func import functional_call

from merging.studies.experts.model import ExpertBank, merge_experts, route
from models.data.batch import GraphBatch

REPEATS = 30


def forward_seconds(bank: ExpertBank, batch: GraphBatch, k: int) -> dict[str, float]:
    """Measure the median seconds of several ways to answer a batch, with torch's number of threads;
    the ways alternate, so that other load affects them alike.

    Returns:
        By name: `top1`, one expert; `ensemble`, k experts and their weighted mean; `merge`, merging
        the weights; `merged`, merging and one forward pass; `merged_kept`, one forward pass with
        weights merged before; `competence`, K forward passes and losses. Besides, `nodes`, the
        number of nodes in the batch.
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
