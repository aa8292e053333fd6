"""The measurements of merged routing run on pico data, and the page shows the stored results."""

from pathlib import Path

import pytest
import torch

from benchmarks import merged_routing
from benchmarks.merged_routing import CASES, EACH_SITE, RESULT, of_site, stream, stream_of
from merging.data.files import read_json
from merging.run.run import Run
from models.data.batch import GraphBatch
from models.experts import unified as plain
from models.experts.bank import AdapterBank
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel
from tests.conftest import pico_config, random_backbone, random_experts
from tests.pages import page, shows

ROOT = Path(__file__).parents[2]


def test_every_case_is_scored(pico_run: Run) -> None:
    found = merged_routing.accuracy(pico_run)
    assert len(found) == 1 + 2 * (len(CASES) - 1)
    for by_task in found.values():
        assert list(by_task) == list(pico_run.config.tasks)
        assert all(0 <= value <= 1 for scores in by_task.values() for value in scores.values())


def test_weights_of_each_site_are_those_of_moe_as_long_as_the_streams_agree(
    molecules: GraphBatch,
) -> None:
    model = UnifiedModel(
        random_backbone(pico_config()),
        random_experts(pico_config()),
        RouterConfig(temperature=0.3, mixed_layers=2),
    )
    merged = model(molecules, routing="merged").routing_weights["alpha"]
    with stream(stream_of(EACH_SITE)):
        each_site = model(molecules, routing="merged").routing_weights["alpha"]
    assert plain._AdapterPass is stream_of("merged")
    torch.testing.assert_close(each_site[:, :2], merged[:, :2])
    assert float((each_site[:, 2:] - merged[:, 2:]).abs().max()) > 1e-3


def test_gap_is_the_difference_of_what_is_subtracted(molecules: GraphBatch) -> None:
    experts = random_experts(pico_config())
    for expert in experts.values():
        expert.adapters.sites.load_state_dict(experts["alpha"].adapters.sites.state_dict())
    model = UnifiedModel(random_backbone(pico_config()), experts, RouterConfig())
    merged_routing._Compared.found = []
    with stream(merged_routing._Compared):
        model(molecules, routing="merged")
    assert [site for site, *_ in merged_routing._Compared.found] == [0, 1, 2, 3]
    assert max(max(values) for _, *values in merged_routing._Compared.found) < 1e-4


def test_units_that_are_shuffled_are_found_elsewhere() -> None:
    experts = [expert.adapters for expert in random_experts(pico_config()).values()]
    for expert in experts[1:]:
        expert.sites[0].down.data = experts[0].sites[0].down.data.clone()
    found = of_site(AdapterBank([adapters.node_adapters[0] for adapters in experts]))
    assert (found["same"], found["found"]) == pytest.approx((1, 1), abs=1e-4)
    for expert in experts[1:]:
        expert.sites[0].down.data = expert.sites[0].down.data.roll(1, 1)
    assert (
        of_site(AdapterBank([adapters.node_adapters[0] for adapters in experts[:2]]))["found"] == 0
    )


def test_the_page_shows_the_results() -> None:
    assert shows(page("merged-routing.md"), merged_routing.table(read_json(ROOT / RESULT)))
