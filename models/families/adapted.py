"""Families whose model has adapters, heads and a router around a network of layers."""

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
    """Base of families whose networks are `LayeredNetwork`s and whose tasks are `Expert`s.

    Attributes:
        targets: that a linear head can predict.
    """

    targets: tuple[Target, ...] = ("multilabel", "multiclass", "regression")

    def check_expert(self, expert: Expert, schema: object, task: str) -> None:
        """Check the weights of an expert. A single adapter may be zero, since some sites may be
        left untrained (`alignment.sites`).

        Raises:
            ArtifactError: a variance is negative, or all adapters are zero.
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
        """The unified model."""
        return UnifiedModel(network, experts, router)

    def served(self, model: UnifiedModel) -> ServedModel:
        """The model itself."""
        return model

    def answer(
        self,
        model: Callable[[GraphBatch, Sequence[str], Routing], UnifiedOutput],
        batch: GraphBatch,
        tasks: Sequence[str],
        routing: Routing,
    ) -> dict[str, TaskOutput]:
        """Predict tasks for a batch: see `models.experts.unified.UnifiedModel.forward`."""
        output = model(batch, tasks, routing)
        return {
            task: TaskOutput(logits, output.target(task), output.routing_weights[task])
            for task, logits in output.logits.items()
        }
