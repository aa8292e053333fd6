"""Open Inference Protocol, version 2: tensors as JSON, or as bytes after the JSON.

The latter is the extension `binary_tensor_data`. The only input is `smiles`, of datatype BYTES and
shape [N] or [N, 1]; every task is an output, of datatype FP32 and shape [N, labels]. The protocol
has no errors of single elements: a molecule that cannot be read fails its request, and the error
names it (`POST /predict` returns an error for that item). Models that do not read molecules and
tasks at level "node" are not available in this protocol.
"""

import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.errors import InvalidInputError, did_you_mean
from models.experts.combination import ExpertChoice, expert_choice
from models.experts.unified import DEFAULT_ROUTING, Routing
from models.task import TaskInfo
from service.core.answer import Answer
from service.core.engine import EngineInfo
from service.formats.answers import written

INPUT = "smiles"
HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data",)
_PARAMETERS = (
    "of a regression or of classes: `target`, and by number of the column the name of its label or"
    " class (`label.0`) and its unit (`unit.0`), where it has one"
)
_Name = Annotated[str, Field(max_length=128)]


class _ProtocolModel(BaseModel):
    # The protocol lets clients send members that a server does not know.
    model_config = ConfigDict(frozen=True, extra="ignore")


class InputParameters(_ProtocolModel):
    """Form of an input's data."""

    binary_data_size: Annotated[int, Field(strict=True, ge=0)] | None = Field(
        None, description="bytes of this input behind the JSON"
    )


class InferInput(_ProtocolModel):
    """The input: SMILES, InChI, mol blocks or CXSMILES."""

    name: Literal["smiles"]
    datatype: Literal["BYTES"]
    shape: Annotated[
        list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]], Field(min_length=1, max_length=2)
    ] = Field(examples=[[2]])
    data: Annotated[list[str | list[str]], Field(fail_fast=True)] | None = Field(
        None, description="in row-major order", examples=[["CCO", "C"]]
    )
    parameters: InputParameters = InputParameters()


class OutputParameters(_ProtocolModel):
    """Form in which an output's data are wanted."""

    binary_data: bool = False


class InferOutput(_ProtocolModel):
    """An output to return: a task."""

    name: _Name
    parameters: OutputParameters = OutputParameters()


class InferParameters(_ProtocolModel):
    """Parameters of the whole request."""

    routing: Routing = DEFAULT_ROUTING
    experts: str | None = Field(
        None,
        max_length=64,
        description="`own`, `forest` or `own,forest`; each task's default if left out",
    )
    binary_data_output: bool = Field(
        False, description="all outputs as bytes behind the JSON, where `outputs` does not say"
    )

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, given: Any) -> Any:
        """Refuse a parameter whose name is nearly one of ours; the protocol allows any other."""
        ours = ("routing", "experts")
        for name in given if isinstance(given, dict) else ():
            if name not in ours and (hint := did_you_mean(name, ours)):
                raise ValueError(f"got an unknown parameter {name[:64]!a}{hint}")
        return given

    @field_validator("experts")
    @classmethod
    def _check_experts(cls, value: str | None) -> str | None:
        if value is not None:
            expert_choice(value.split(","))
        return value

    @property
    def expert_choice(self) -> ExpertChoice | None:
        """The experts that answer; None for the default ones."""
        return None if self.experts is None else expert_choice(self.experts.split(","))


class InferRequest(_ProtocolModel):
    """Request for inference."""

    id: Annotated[str, Field(max_length=256)] | None = None
    inputs: Annotated[list[InferInput], Field(min_length=1, max_length=1)]
    outputs: list[InferOutput] | None = Field(
        None, description="tasks by name; all of them if left out"
    )
    parameters: InferParameters = InferParameters()


class TensorMetadata(BaseModel):
    """Name, datatype and shape of a tensor; -1 stands for any length."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, str] | None = Field(None, description=_PARAMETERS)


class ModelNames(BaseModel):
    """Names of the loaded models."""

    models: list[str] = Field(examples=[["admet"]])


class ServerMetadata(BaseModel):
    """Name, version and extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class ModelMetadata(BaseModel):
    """Inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class OutputTensor(BaseModel):
    """Answer of one task as a tensor."""

    name: str
    datatype: Literal["FP32"]
    shape: list[int]
    data: list[float] | None = Field(
        None, description="in row-major order; absent where it is behind the JSON"
    )
    parameters: dict[str, int | str] | None = Field(None, description=_PARAMETERS)


class InferResponse(BaseModel):
    """Response to an inference request."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, str]
    outputs: list[OutputTensor]


def model_metadata(name: str, info: EngineInfo) -> ModelMetadata:
    """Return the metadata of a model under a name.

    Raises:
        UnsupportedQueryError: the model does not read molecules, or has tasks at level "node".
    """
    info.check_table(info.tasks)
    outputs = [
        TensorMetadata(
            name=name,
            datatype="FP32",
            shape=[-1, len(task.labels)],
            parameters=_tensor_parameters(task) or None,
        )
        for name, task in info.task_infos.items()
    ]
    smiles = TensorMetadata(name=INPUT, datatype="BYTES", shape=[-1])
    return ModelMetadata(
        name=name, versions=[info.version], platform="g-merging", inputs=[smiles], outputs=outputs
    )


def _tensor_parameters(task: TaskInfo) -> dict[str, str]:
    """Describe the columns of an output that is not multilabel: the target, and for each column the
    name (`label.0`) and unit (`unit.0`) of its label or class."""
    if task.target == "multilabel":
        return {}
    labels = {f"label.{k}": label for k, label in enumerate(task.labels)}
    units = {f"unit.{k}": unit for k, unit in enumerate(task.units) if unit}
    return {"target": task.target, **labels, **units}


def read_request(body: bytes, header_length: str | None) -> tuple[InferRequest, list[str]]:
    """Read a request and its SMILES.

    Args:
        body: JSON, followed by the bytes of the input if `header_length` is given.
        header_length: length of the JSON in bytes, as the header gives it.

    Raises:
        InvalidInputError: the request does not follow the protocol.
    """
    length = len(body)
    if header_length is not None:
        if (
            not header_length.isascii()
            or not header_length.isdecimal()
            or len(header_length) > 12
            or int(header_length) > length
        ):
            raise InvalidInputError(
                f"{HEADER_LENGTH}: got {header_length[:20]!a}, expected at most the {length} bytes"
                " of the body"
            )
        length = int(header_length)
    try:
        request = InferRequest.model_validate_json(body[:length])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "/".join(map(str, first["loc"])) or "body"
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidInputError(f"{where}: {message}") from None
    smiles = _elements(request.inputs[0], body[length:])
    shape = request.inputs[0].shape
    if shape[1:] not in ([], [1]) or shape[0] != len(smiles) or not smiles:
        raise InvalidInputError(
            f"{INPUT}: got shape {shape} and {len(smiles)} elements, expected [N] or [N, 1] with N"
            " elements, at least one"
        )
    return request, smiles


def _elements(tensor: InferInput, binary: bytes) -> list[str]:
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise InvalidInputError(
            f"{INPUT}: got {'neither' if size is None else 'both'} of data and binary_data_size,"
            " expected exactly one"
        )
    if tensor.data is not None:
        rows = ([row] if isinstance(row, str) else row for row in tensor.data)
        return [text for row in rows for text in row]
    if size != len(binary):
        raise InvalidInputError(
            f"{INPUT}: got binary_data_size {size}, expected the {len(binary)} bytes behind the"
            " JSON"
        )
    found, position = [], 0
    while position < len(binary):
        if position + 4 > len(binary):
            raise InvalidInputError(
                f"{INPUT}: got {len(binary) - position} bytes at the end, expected a length of 4"
                " bytes and an element"
            )
        (length,) = struct.unpack_from("<I", binary, position)
        position += 4 + length
        if position > len(binary):
            raise InvalidInputError(
                f"{INPUT}: got an element of {length} bytes, of which"
                f" {len(binary) - position + length} are there"
            )
        found.append(binary[position - length : position].decode("utf-8", "replace"))
    return found


def write_response(
    request: InferRequest,
    model: str,
    info: EngineInfo,
    tasks: Sequence[str],
    answers: Sequence[Answer],
) -> tuple[bytes, int | None]:
    """Write the response to a request.

    Args:
        request: the request.
        model: name of the model.
        info: description of the model.
        tasks: tasks to return, in order.
        answers: one answer per molecule.

    Returns:
        The body, and the length of its JSON if bytes follow it.
    """
    as_bytes = {output.name: output.parameters.binary_data for output in request.outputs or ()}
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for task in tasks:
        values: NDArray[np.float32] = np.stack(
            [answer.tasks[task].values for answer in answers]
        ).astype("<f4")
        tensor: dict[str, Any] = {"name": task, "datatype": "FP32", "shape": list(values.shape)}
        parameters: dict[str, int | str] = {**_tensor_parameters(info.task_infos[task])}
        if as_bytes.get(task, request.parameters.binary_data_output):
            binary.append(values.tobytes())
            parameters["binary_data_size"] = values.nbytes
        else:
            tensor["data"] = written(values.ravel(), info.task_infos[task].target)
        outputs.append(tensor | ({"parameters": parameters} if parameters else {}))
    head: dict[str, Any] = {
        "model_name": model,
        "model_version": info.version,
        "parameters": {"digest": info.digest},
        "outputs": outputs,
    }
    if request.id is not None:
        head["id"] = request.id
    text = orjson.dumps(head)
    return (text + b"".join(binary), len(text)) if binary else (text, None)
