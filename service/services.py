"""What a running application consists of; the routes work with these."""

from dataclasses import dataclass

from service.bulk.flow import StreamPlaces
from service.bulk.jobs import JobStore
from service.core.models import ModelRegistry
from service.core.pipeline import Pipeline
from service.security import KeyRing
from service.settings import Settings
from service.telemetry.metrics import Metrics


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
