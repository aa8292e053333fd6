"""Which stream every task of a model reads from, and which streams a pass needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.experts.adapter import Stream
from models.experts.expert import TaskExpert, shared_streams


@dataclass(frozen=True)
class StreamSelection:
    """The streams of a pass for T requested tasks.

    Attributes:
        tasks: (T,) positions of the tasks among the K of the model.
        streams: positions of the S streams among those of the model: those of single tasks, then
            shared ones.
        of_task: (T,) position in `streams` of the stream of each task.
        own: how many of the first streams are of single tasks.
        own_tasks: positions in the model of all its tasks with a stream of their own.
        num_tasks: K.
    """

    tasks: tuple[int, ...]
    streams: tuple[int, ...]
    of_task: tuple[int, ...]
    own: int
    own_tasks: tuple[int, ...]
    num_tasks: int

    @property
    def has_own_stream(self) -> list[bool]:
        """For each requested task, whether it has a stream of its own."""
        return [stream < self.own for stream in self.of_task]

    def one_hot(self, num_graphs: int, like: Tensor) -> Tensor:
        """Weigh every task's own expert by 1: (G, T, K), a view with the dtype and device of
        `like`."""
        tasks = torch.tensor(self.tasks, device=like.device)
        rows = functional.one_hot(tasks, self.num_tasks).to(like.dtype)
        return rows.expand(num_graphs, -1, -1)

    def by_task(self, node_weights: Tensor | None, one_hot: Tensor) -> Tensor:
        """Extend the routing weights of a node site to all tasks.

        Args:
            node_weights: (G, own, K_own) of the streams of single tasks over those of the model;
                None if there are none in the pass.
            one_hot: (G, T, K), the weights of tasks that share a stream.

        Returns:
            (G, T, K).
        """
        if node_weights is None:
            return one_hot
        device = one_hot.device
        requested = [t for t, own in enumerate(self.has_own_stream) if own]
        rows = torch.tensor(requested, device=device).unsqueeze(1)
        columns = torch.tensor(self.own_tasks, device=device)
        streams = torch.tensor([self.of_task[t] for t in requested], device=device)
        weights = one_hot.clone()
        weights[:, rows, columns] = node_weights[:, streams]
        return weights


class StreamTable:
    """The streams of a model and the tasks that read from them.

    Attributes:
        streams: streams of single tasks in the order of the tasks, then shared ones.
        names: names of the streams; that of a single task has the task's name.
        of_task: (K,) position of each task's stream.
        own: how many of the first streams are of single tasks.
    """

    def __init__(self, experts: Mapping[str, TaskExpert]) -> None:
        """Raises InvalidInputError: see `shared_streams`."""
        own = {task: expert.stream for task, expert in experts.items() if not expert.stream.name}
        ordered = own | shared_streams(experts)
        self.names, self.streams = tuple(ordered), tuple[Stream, ...](ordered.values())
        self.own = len(own)
        position = {name: k for k, name in enumerate(ordered)}
        self.of_task = tuple(
            position[expert.stream.name or task] for task, expert in experts.items()
        )
        self._own_tasks = tuple(k for k, stream in enumerate(self.of_task) if stream < self.own)

    def select(self, tasks: Sequence[int]) -> StreamSelection:
        """Select the streams that tasks need, each once.

        Streams of single tasks are in the order of the requested tasks.
        """
        needed = list(dict.fromkeys(self.of_task[task] for task in tasks))
        own = [stream for stream in needed if stream < self.own]
        streams = own + [stream for stream in needed if stream >= self.own]
        position = {stream: k for k, stream in enumerate(streams)}
        return StreamSelection(
            tasks=tuple(tasks),
            streams=tuple(streams),
            of_task=tuple(position[self.of_task[task]] for task in tasks),
            own=len(own),
            own_tasks=self._own_tasks,
            num_tasks=len(self.of_task),
        )
