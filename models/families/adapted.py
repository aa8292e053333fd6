"""Networks of layers with adapters, heads and a router: what several families share."""

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
    """The model of a family whose networks are `LayeredNetwork`s and whose tasks bring `Expert`s.

    Attributes:
        targets: what a linear head can answer.
    """

    targets: tuple[Target, ...] = ("multilabel", "multiclass", "regression")

    def check_expert(self, expert: Expert, schema: object, task: str) -> None:
        """Raises ArtifactError: a variance is negative, or no adapter subtracts anything.

        A single adapter may be idle: which ones are trained is a setting (`alignment.sites`).
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
        """All tasks behind one network."""
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
        """The tasks' answers: see `models.experts.unified.UnifiedModel.forward`."""
        output = model(batch, tasks, routing)
        return {
            task: TaskOutput(logits, output.target(task), output.routing_weights[task])
            for task, logits in output.logits.items()
        }
