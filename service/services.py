"""What a running application consists of; the routes work with these."""

from dataclasses import dataclass

from service.jobs import JobStore
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.registry import ModelRegistry
from service.security import KeyRing
from service.settings import Settings
from service.streams import StreamPlaces


@dataclass
class Services:
    """All parts of an application that was started.

    Attributes:
        settings, metrics, keys: of the application.
        pipeline: answers.
        models: which models there are.
        streams: places for streams.
        jobs: None if there is no folder for them.
    """

    settings: Settings
    metrics: Metrics
    keys: KeyRing
    pipeline: Pipeline
    models: ModelRegistry
    streams: StreamPlaces
    jobs: JobStore | None
