from dataclasses import replace
from pathlib import Path

import torch

from merging.run.run import Run
from merging.run.stages import merge_result, teacher, trained_model
from merging.studies.force_adapters import adapted_model, low_rank_adapters
from tests.merging.families.test_force_fields import SHAPES, write_md17
from tests.merging.studies.test_pretrained_forces import CONFIG

RANK = 2


def test_a_task_adds_low_rank_parts_to_the_linears_of_the_merged_network(tmp_path: Path) -> None:
    for task in SHAPES:
        write_md17(tmp_path, task)
    changes = {"tuning": None, "joint_alignment": CONFIG.training}
    run = Run(CONFIG.model_copy(update=changes), 0, tmp_path, tmp_path / "work")
    network, expert = adapted_model(RANK, run, "water")
    merged, added, still = merge_result(run), 0, set()
    for name, weight in network.state_dict().items():
        delta = weight - merged.backbone[name]
        if "norm" in name or weight.dim() != 2:
            assert not delta.any(), name
            continue
        added += RANK * sum(weight.shape)
        rank = int(torch.linalg.matrix_rank(delta, atol=1e-6))
        assert rank <= RANK, name
        still |= set() if rank else {name}
    # Nothing reads the angles after the last update.
    assert still == {"angle_layers.0.core.weight", "angle_layers.0.gate.weight"}
    head, own = expert.state_dict(), merged.heads["water"]
    moved = {name for name, value in head.items() if not value.equal(own[name])}
    assert moved == {
        f"{name}.{kind}" for name in expert.head_linears for kind in ("weight", "bias")
    }
    heads = sum(head[name].numel() for name in moved)
    result = trained_model(run, low_rank_adapters(RANK, run, "water"))
    assert result.record["numbers"] == added + heads
    assert result.record["steps"] == trained_model(run, teacher(run, "water")).record["steps"]
    other = replace(run, seed=1)
    assert low_rank_adapters(RANK, run, "water").key != low_rank_adapters(3, run, "water").key
    assert low_rank_adapters(RANK, run, "water").key != low_rank_adapters(RANK, other, "water").key
