"""What the card of a model for molecules says about its adapters; heads that start as probes."""

import torch

from merging.config.training import FinetuneConfig
from merging.families.molecules import Molecules
from merging.run.run import Run
from merging.run.stages import initial_model, teacher, trained_model
from merging.targets.probe import fit_probe
from models.data.batch import mean_readout
from models.experts.router import RouterConfig
from models.manifest import Manifest, StreamInfo, make_manifest
from models.task import TaskInfo
from tests.conftest import pico_config


def manifest(streams: dict[str, StreamInfo]) -> Manifest:
    tasks = {task: TaskInfo(labels=("y",)) for task in ("alpha", "beta", "gamma")}
    return make_manifest("m", "1", pico_config(), 4, RouterConfig(), tasks, streams=streams)


def test_the_card_describes_the_adapters_of_every_task() -> None:
    text = Molecules().card_introduction(manifest({}))
    assert "merged from\n3 fine-tuned models, with adapters of rank 4 at\n4 sites for each" in text
    assert "stream" not in text


def test_the_card_names_the_tasks_of_a_shared_stream() -> None:
    shared = {"common": StreamInfo(tasks=("alpha", "gamma"), graph_rank=9)}
    text = Molecules().card_introduction(manifest(shared))
    assert "The stream `common` is one pass of the network for alpha, gamma.\n" in text
    assert "have a graph adapter of rank 9 each." in text
    assert "other task (beta) has a stream of its own, with adapters of rank 4 at\n4 sites." in text
    everything = {"common": StreamInfo(tasks=("alpha", "beta", "gamma"), graph_rank=9)}
    assert "stream of its own" not in Molecules().card_introduction(manifest(everything))


def test_a_head_starts_as_a_probe_of_the_training_molecules(pico_run: Run) -> None:
    data, family = pico_run.dataset("other"), pico_run.family
    initial = pico_run.initial_state()
    model = initial_model(family, pico_run.config.shape, {"other": data}, initial, 0, 0.5)
    before = {key: value.clone() for key, value in model.head("other").state_dict().items()}
    start = model.network, model.head("other"), data
    family.start_head(*start, FinetuneConfig())
    assert all(torch.equal(value, before[key]) for key, value in start[1].state_dict().items())
    family.start_head(*start, FinetuneConfig(head="probe"))
    batch = data.graphs.select(data.split.train)
    with torch.no_grad():
        embeddings = mean_readout(model.network.eval()(batch), batch)
    expected = fit_probe(embeddings, data.labels[data.split.train], "multilabel", None)
    for key, value in start[1].state_dict().items():
        torch.testing.assert_close(value, expected[key], atol=1e-4, rtol=1e-4)


def test_the_start_of_the_head_is_part_of_the_key_and_the_default_is_not(pico_run: Run) -> None:
    assert "head" not in FinetuneConfig().model_dump()
    probed = pico_run.with_changes(finetune={"head": "probe"})
    assert teacher(probed, "other").key != teacher(pico_run, "other").key
    heads = [
        trained_model(run, teacher(run, "nitrogen")).heads["nitrogen"] for run in (probed, pico_run)
    ]
    assert not torch.equal(heads[0]["weight"], heads[1]["weight"])
