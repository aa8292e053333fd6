"""Files as chemprop 2 writes them, made without chemprop: whole, and with anything changed."""

import io
import json
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILES = Path(__file__).parent / "files"
PREDICTIONS: dict[str, dict[str, list[float]]] = json.loads(
    (FILES / "predictions.json").read_text()
)
VECTORS: dict[str, dict[str, list[float]]] = json.loads((FILES / "vectors.json").read_text())
WIDTH, ATOM, BOND = 4, 52, 2


class Calls:
    """Pickled as the call of a function, or of a class."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


Content = dict[str, Any]
Change = Callable[[Content], object]


def named(full_name: str) -> type:
    """Return a class that is pickled under a full name."""
    module, _, name = full_name.rpartition(".")
    return type(name, (), {"__module__": module})


def chemprop_class(name: str) -> type:
    """Return a class that is pickled as chemprop's class of this name below `chemprop.nn`."""
    return named(f"chemprop.nn.{name}")


@contextmanager
def importable(classes: set[type]) -> Iterator[None]:
    """Let pickle find classes under their full names."""
    before = dict(sys.modules)
    try:
        for made in classes:
            names = made.__module__.split(".")
            for k in range(len(names)):
                name = ".".join(names[: k + 1])
                sys.modules.setdefault(name, types.ModuleType(name))
            setattr(sys.modules[made.__module__], made.__name__, made)
        yield
    finally:
        sys.modules.clear()
        sys.modules.update(before)


def classes_in(value: object) -> set[type]:
    """Return the classes that `named` made anywhere in a value."""
    found, seen, left = set(), set(), [value]
    while left:
        inner = left.pop()
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        made = inner if isinstance(inner, type) else type(inner)
        if made.__module__.startswith("chemprop."):
            found.add(made)
        if isinstance(inner, dict):
            left += inner.values()
        elif isinstance(inner, list | tuple):
            left += inner
        elif isinstance(inner, Calls):
            left += [inner.function, *inner.arguments]
    return found


def save(path: Path, content: object) -> Path:
    """Write a file with `torch.save`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with importable(classes_in(content)):
        torch.save(content, path)
    return path


def saved(path: Path, change: Change = lambda content: None) -> Path:
    """Write a model of one regression after a change."""
    content = model()
    change(content)
    return save(path, content)


def model(columns: int = 1) -> Content:
    """The content of a file of a regression with unscaling."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    unscale = chemprop_class("transforms.UnscaleTransform")()
    return {
        "hyper_parameters": {
            "batch_norm": False,
            "metrics": None,
            "X_d_transform": None,
            "message_passing": {
                "d_v": ATOM,
                "d_e": BOND,
                "d_h": WIDTH,
                "bias": False,
                "depth": 3,
                "dropout": 0.0,
                "activation": "RELU",
                "undirected": False,
                "d_vd": None,
                "V_d_transform": None,
                "graph_transform": None,
                "cls": chemprop_class("message_passing.base.BondMessagePassing"),
            },
            "agg": {"dim": 0, "cls": chemprop_class("agg.MeanAggregation")},
            "predictor": {
                "n_tasks": columns,
                "input_dim": WIDTH,
                "hidden_dim": 3,
                "n_layers": 1,
                "activation": "relu",
                "criterion": None,
                "output_transform": unscale,
                "cls": chemprop_class("predictors.RegressionFFN"),
            },
        },
        "state_dict": {
            "message_passing.W_i.weight": numbers(WIDTH, ATOM + BOND),
            "message_passing.W_h.weight": numbers(WIDTH, WIDTH),
            "message_passing.W_o.weight": numbers(WIDTH, ATOM + WIDTH),
            "message_passing.W_o.bias": numbers(WIDTH),
            "predictor.ffn.0.0.weight": numbers(3, WIDTH),
            "predictor.ffn.0.0.bias": numbers(3),
            "predictor.ffn.1.2.weight": numbers(columns, 3),
            "predictor.ffn.1.2.bias": numbers(columns),
            "predictor.output_transform.mean": torch.full((1, columns), 2.0),
            "predictor.output_transform.scale": torch.full((1, columns), 3.0),
            "predictor.criterion.task_weights": torch.ones(1, columns),
            "metrics.0.task_weights": torch.ones(1, 1),
        },
        "output_columns": [f"y{k}" for k in range(columns)],
    }


def hyper(section: str, **values: object) -> Change:
    """Return a change of hyper-parameters."""
    return lambda content: content["hyper_parameters"][section].update(values)


def whole(**values: object) -> Change:
    """Return a change of the hyper-parameters of the whole model."""
    return lambda content: content["hyper_parameters"].update(values)


def tensor(name: str, value: object) -> Change:
    """Return a change of a tensor."""
    return lambda content: content["state_dict"].update({name: value})


def without(name: str) -> Change:
    """Return a change that takes a tensor away."""
    return lambda content: content["state_dict"].pop(name)


def together(*changes: Change) -> Change:
    """Return the changes one after the other."""

    def change(content: Content) -> None:
        for inner in changes:
            inner(content)

    return change


def archive(path: Path, pickle: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive as `torch.save` does, around a pickle of one's own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as stream:
        stream.writestr("archive/data.pkl", pickle)
        stream.writestr("archive/byteorder", b"little")
        stream.writestr("archive/version", b"3\n")
    path.write_bytes(buffer.getvalue())
    return path


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "leakyrelu": lambda: nn.LeakyReLU(0.1),
}
"""What chemprop means by the names of activations; PReLU has a weight of its own."""
