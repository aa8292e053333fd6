"""Files of `torch.save` read as data: nothing in them is ever executed.

Chemprop's files name classes of chemprop, lightning, torchmetrics and torch. Here every such name
stands for an inert class of our own; a file with any other name is refused before it is loaded.
"""

import pickletools
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from models.errors import CheckpointError

_V2_1_METRICS = (
    "BCELoss BinaryAUPRC BinaryAUROC BinaryAccuracy BinaryF1Score BinaryMCCLoss BinaryMCCMetric"
    " BoundedMAE BoundedMSE BoundedRMSE CrossEntropyLoss DirichletLoss EvidentialLoss MAE MSE"
    " MVELoss MulticlassMCCLoss MulticlassMCCMetric NLogProbEnrichment PointQuantileLoss"
    " QuantileLoss R2Score RMSE SID Wasserstein"
)
_V2_0_METRICS = (
    "BCEMetric BinaryAUPRCMetric BinaryAUROCMetric BinaryAccuracyMetric BinaryF1Metric"
    " BoundedMAEMetric BoundedMSEMetric BoundedRMSEMetric CrossEntropyMetric MAEMetric MSEMetric"
    " R2Metric RMSEMetric SIDMetric WassersteinMetric"
)
_V2_0_LOSSES = (
    "BCELoss BinaryDirichletLoss BinaryMCCLoss BoundedMSELoss CrossEntropyLoss EvidentialLoss"
    " MSELoss MVELoss MulticlassDirichletLoss MulticlassMCCLoss SIDLoss WassersteinLoss"
)
_INERT_NAMES = {
    "chemprop.nn.agg": "AttentiveAggregation MeanAggregation NormAggregation SumAggregation",
    "chemprop.nn.ffn": "ConstrainerFFN",
    "chemprop.nn.loss": _V2_0_LOSSES,
    "chemprop.nn.message_passing.base": "AtomMessagePassing BondMessagePassing",
    "chemprop.nn.message_passing.mol_atom_bond": "MABAtomMessagePassing MABBondMessagePassing",
    "chemprop.nn.message_passing.multi": "MulticomponentMessagePassing",
    "chemprop.nn.metrics": f"{_V2_1_METRICS} {_V2_0_METRICS}",
    "chemprop.nn.predictors": (
        "BinaryClassificationFFN BinaryDirichletFFN EvidentialFFN MulticlassClassificationFFN"
        " MulticlassDirichletFFN MveFFN QuantileFFN RegressionFFN SpectralFFN"
    ),
    "chemprop.nn.transforms": "GraphTransform ScaleTransform UnscaleTransform",
    "chemprop.nn.utils": "Activation",
    "torch.nn.modules.activation": " ".join(torch.nn.modules.activation.__all__),
    "torch.nn.modules.linear": "Identity",
    "torchmetrics.metric": "jit_distributed_available",
    "torchmetrics.utilities.data": (
        "dim_zero_cat dim_zero_max dim_zero_mean dim_zero_min dim_zero_sum"
    ),
}
_DICTIONARIES = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Lightning's dictionaries of hyper-parameters, by the versions that wrote them."""
_NUMBERS = "Float Double Half BFloat16 Long Int Short Char Byte Bool"
_PLAIN = {
    "collections.OrderedDict",
    "__builtin__.set",
    "builtins.set",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    *(f"torch.{kind}Storage" for kind in _NUMBERS.split()),
    *("torch.float16", "torch.bfloat16", "torch.float32", "torch.float64", "torch.int64"),
}
"""Names that torch resolves itself. It would accept more, some of which take memory at will."""
_INDIRECT = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
"""Instructions of pickle that name classes in other ways; torch.save writes none of them."""
_CAUSE = "WeightsUnpickler error: "
_LOADING = threading.Lock()  # torch's list of safe names belongs to the process


class Inert:
    """An object of a file, without behaviour.

    Attributes:
        arguments: those of its constructor. What else the file says of it is in its `__dict__`.
    """

    arguments: tuple[Any, ...] = ()

    def __new__(cls, *arguments: Any) -> "Inert":
        """Keep the arguments, whatever they are."""
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any) -> None:
        """Do nothing."""


INERT: dict[str, type[Inert]] = {
    f"{module}.{name}": type(name, (Inert,), {"__module__": __name__})
    for module, names in _INERT_NAMES.items()
    for name in names.split()
}
"""Our classes by the full names that they stand for."""


def read_checkpoint(path: Path) -> dict[Any, Any]:
    """Read a file that chemprop, Lightning or `torch.save` wrote, without executing anything.

    Args:
        path: a `.pt`, `.pth` or `.ckpt` file.

    Returns:
        Its dictionary; tensors are on the CPU, objects of chemprop are `Inert`.

    Raises:
        CheckpointError: there is no file; it is empty, cut off, no zip archive, compressed or a
            program of TorchScript; it names what is not on our list, such as chemprop v1 files
            do; or it is no dictionary.
    """
    if not path.is_file():
        raise CheckpointError(f"got no file at {path}, expected a model (.pt or .ckpt)")
    unknown = sorted(_names(path, _pickle(path)) - _PLAIN - INERT.keys() - {*_DICTIONARIES})
    if "argparse.Namespace" in unknown:
        raise CheckpointError(
            f"{path}: got a model of chemprop 1 (argparse.Namespace), expected chemprop 2; convert"
            f" it: chemprop convert -i {path} -o converted.pt"
        )
    if unknown:
        raise CheckpointError(
            f"{path}: got {_first(unknown)} in its pickle, expected tensors, plain values and"
            " classes of chemprop only; nothing of the file was executed"
        )
    classes = [(inert, name) for name, inert in INERT.items()]
    dictionaries = [(OrderedDict, name) for name in _DICTIONARIES]
    try:
        with _LOADING, torch.serialization.safe_globals([*classes, *dictionaries]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        got = f"a file that cannot be read ({reason_of(error)})"
        raise CheckpointError(f"{path}: got {got}, expected a model") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"{path}: got a {kind}, expected a dictionary with a state_dict")
    return content


def shown(value: object) -> str:
    """Format a value of a file for a message. Only short plain values are shown as they are: a
    pickle can hold values whose text is endless."""
    if isinstance(value, Inert):
        return f"a {type(value).__name__}"
    if isinstance(value, type):
        return value.__name__
    if value is None:
        return "nothing"
    if isinstance(value, bool | float):
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**12 else "a huge number"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:60]}...")
    return f"a {type(value).__name__}"


def reason_of(error: Exception) -> str:
    """Return the cause in an error of `torch.load`, in one line, without its advice to execute the
    file."""
    text = str(error).partition(_CAUSE)[2] or str(error)
    lines = text.strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _pickle(path: Path) -> bytes:
    """Return the pickle inside a file of `torch.save`, after checks of the archive around it."""
    expected = "expected a zip archive as torch.save writes it"
    if not path.stat().st_size:
        raise CheckpointError(f"{path}: got an empty file, {expected}")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if any(name.endswith("/constants.pkl") for name in names):
                raise CheckpointError(f"{path}: got a TorchScript program, expected a state dict")
            if packed := [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
                got = f"a compressed entry, {shown(packed[0].filename)}"
                raise CheckpointError(f"{path}: got {got}, {expected}, without compression")
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(f"{path}: got {len(pickles)} entries data.pkl, expected one")
            return archive.read(pickles[0])
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        with path.open("rb") as stream:
            start = stream.read(2)
        kind = "a damaged or cut-off zip archive" if start == b"PK" else "no zip archive"
        raise CheckpointError(f"{path}: got {kind} ({error}), {expected}") from error


def _names(path: Path, content: bytes) -> set[str]:
    """Return the full names of everything outside of itself that a pickle refers to."""
    found = set()
    try:
        for instruction, argument, _ in pickletools.genops(content):
            if instruction.name in _INDIRECT:
                got = f"the instruction {instruction.name} in its pickle"
                raise CheckpointError(f"{path}: got {got}, expected those of torch.save")
            if instruction.name == "GLOBAL":
                found.add(str(argument).replace(" ", "."))
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: got a damaged pickle ({str(error)[:200]}), expected a model"
        ) from error
    return found
