"""What the card of a model for molecules says about its adapters."""

from merging.families.molecules import Molecules
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
