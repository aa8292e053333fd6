"""The services of a running application, as the routes use them."""

from dataclasses import dataclass

from service.bulk.flow import StreamPermits
from service.bulk.jobs import JobStore
from service.core.models import ModelRegistry
from service.core.pipeline import Pipeline
from service.security import KeyRing
from service.settings import Settings
from service.telemetry.metrics import Metrics


@dataclass
class Services:
    """Services of one started application.

    Attributes:
        settings: settings of the service.
        metrics: Prometheus metrics.
        keys: API keys and their rate limits.
        pipeline: answers predictions.
        models: the loaded models, by name.
        streams: permits for concurrent streams.
        jobs: jobs on disk; None if the service keeps no jobs.
    """

    settings: Settings
    metrics: Metrics
    keys: KeyRing
    pipeline: Pipeline
    models: ModelRegistry
    streams: StreamPermits
    jobs: JobStore | None
