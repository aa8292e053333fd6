"""Base of families whose models are a layered network with adapters, heads and a router."""

from collections.abc import Callable, Mapping, Sequence

from models.data.batch import GraphBatch
from models.errors import ArtifactError
from models.experts.expert import Expert
from models.experts.router import RouterConfig
from models.experts.unified import Routing, UnifiedModel, UnifiedOutput
from models.families.base import ServedModel, TaskOutput
from models.networks.base import LayeredNetwork
from models.task import Target


class AdaptedFamily:
    """Base of families whose network is a `LayeredNetwork` and whose task modules are `Expert`s.

    Attributes:
        targets: prediction targets of a linear head.
    """

    targets: tuple[Target, ...] = ("multilabel", "multiclass", "regression")

    def check_expert(self, expert: Expert, schema: object, task: str) -> None:
        """Check the loaded weights of an expert.

        Raises:
            ArtifactError: a BatchNorm variance is negative, or the adapters of all sites are zero.
                Some may be zero, since training can leave sites out (`alignment.sites`).
        """
        adapters = expert.adapters
        if bool((adapters.norm_var < 0).any()):
            raise ArtifactError("adapters.norm_var is negative, expected variances")
        if adapters.rank and not adapters.active_sites:
            raise ArtifactError(
                f"adapters.sites.*.up or .down are zero at all {len(adapters.sites)} sites, "
                f"expected adapters of rank {adapters.rank} that do something"
            )

    def model(
        self, network: LayeredNetwork, experts: Mapping[str, Expert], router: RouterConfig
    ) -> UnifiedModel:
        """Assemble the unified model."""
        return UnifiedModel(network, experts, router)

    def served(self, model: UnifiedModel) -> ServedModel:
        """Return the model itself."""
        return model

    def answer(
        self,
        model: Callable[[GraphBatch, Sequence[str], Routing], UnifiedOutput],
        batch: GraphBatch,
        tasks: Sequence[str],
        routing: Routing,
    ) -> dict[str, TaskOutput]:
        """Predict tasks for a batch: see `ModelFamily.answer` and `UnifiedModel.forward`."""
        output = model(batch, tasks, routing)
        return {
            task: TaskOutput(logits, output.target(task), output.routing_weights[task])
            for task, logits in output.logits.items()
        }
