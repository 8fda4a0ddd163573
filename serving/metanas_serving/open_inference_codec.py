"""Messages of the Open Inference Protocol to images of the contract, and probabilities back.

    read_images    ModelInferRequest          ->  Images, as Classify takes them
    read_outputs   ModelInferRequest          ->  which outputs are wanted
    answer         probabilities, the wanted  ->  ModelInferResponse

Pure functions. What a request looks like is checked here; what is in its images is checked where that
of Classify is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metanas_proto.inference import open_inference_pb2 as oip
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving import codec
from metanas_serving.errors import InvalidRequestError
from metanas_serving.facts import TaskFacts
from metanas_serving.open_inference_model import DATATYPES, INPUT, LABELS, PROBABILITIES, VERSION, image_shape
from metanas_serving.open_inference_tensors import elements, raw_bytes

_DATA_TYPES = {"UINT8": pb.Tensor.DATA_TYPE_UINT8, "FP32": pb.Tensor.DATA_TYPE_FLOAT32}
# Of the extension that answers with classes in place of a tensor.
_CLASSIFICATION = "classification"
_SHARED_MEMORY = "shared_memory_"


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """One output of an answer."""

    name: str
    top_classes: int | None = None
    """Answer with so many classes an image, each as ``probability:index:name``; None: with the tensor."""


def read_images(request: oip.ModelInferRequest, facts: TaskFacts, *, max_images: int) -> list[pb.Image]:
    """Take the images out of a request; none is decoded yet.

    Raises:
        InvalidRequestError: not the one input that a task has, or its shape, datatype or size is wrong.
    """
    if [tensor.name for tensor in request.inputs] != [INPUT]:
        names = ", ".join(repr(tensor.name[:64]) for tensor in request.inputs[:4]) or "none"
        raise InvalidRequestError(f"a task has one input, {INPUT!r}; got {len(request.inputs)}: {names}; send that one")
    tensor = request.inputs[0]
    _refuse_shared_memory(tensor.parameters, tensor.name)
    _check_shape(tensor, facts, max_images=max_images)
    parts = elements(tensor, _raw(request))
    if tensor.datatype == "BYTES":
        return [pb.Image(encoded=part) for part in parts]
    data_type, shape = _DATA_TYPES[tensor.datatype], image_shape(facts)
    return [pb.Image(tensor=pb.Tensor(data_type=data_type, shape=shape, data=part)) for part in parts]


def _check_shape(tensor: oip.ModelInferRequest.InferInputTensor, facts: TaskFacts, *, max_images: int) -> None:
    if tensor.datatype not in DATATYPES:
        raise InvalidRequestError(
            f"input {INPUT!r} has datatype {tensor.datatype[:64]!r}; send one of {', '.join(DATATYPES)}"
        )
    shape, height_width_channels = tuple(tensor.shape), image_shape(facts)
    if tensor.datatype == "BYTES":
        fits, wanted = shape[1:] in ((), (1,)), "(images) or (images, 1), each a PNG or JPEG file"
    else:
        height, width, channels = height_width_channels
        fits, wanted = shape[1:] == height_width_channels, f"(images, {height}, {width}, {channels})"
    if not shape or shape[0] < 0 or not fits:
        hint = "" if tensor.datatype == "BYTES" else ", or files of any size as BYTES"
        raise InvalidRequestError(
            f"input {INPUT!r} of datatype {tensor.datatype} has shape {shape[:8]}; send {wanted}{hint}"
        )
    codec.check_image_count(shape[0], max_images)


def _raw(request: oip.ModelInferRequest) -> bytes | None:
    """The raw bytes of the one input; None if its contents are typed."""
    if not request.raw_input_contents:
        return None
    if len(request.raw_input_contents) != 1:
        raise InvalidRequestError(
            f"{len(request.raw_input_contents)} raw_input_contents for one input; send one, or typed contents"
        )
    if request.inputs[0].HasField("contents"):
        raise InvalidRequestError(f"input {INPUT!r} has contents and raw_input_contents; send one of them")
    return request.raw_input_contents[0]


def read_outputs(request: oip.ModelInferRequest) -> list[WantedOutput]:
    """Which outputs a request wants, in its order; both if it names none.

    Raises:
        InvalidRequestError: one that a task does not have, or in a form that it does not have.
    """
    outputs = []
    for requested in request.outputs:
        if requested.name not in (PROBABILITIES, LABELS):
            raise InvalidRequestError(
                f"a task has no output {requested.name[:64]!r}; ask for {PROBABILITIES!r}, {LABELS!r}, or name none"
            )
        _refuse_shared_memory(requested.parameters, requested.name)
        outputs.append(WantedOutput(requested.name, _top_classes(requested)))
    if len({output.name for output in outputs}) < len(outputs):
        raise InvalidRequestError("an output is asked for twice; name each once")
    return outputs or [WantedOutput(PROBABILITIES), WantedOutput(LABELS)]


def _top_classes(requested: oip.ModelInferRequest.InferRequestedOutputTensor) -> int | None:
    if _CLASSIFICATION not in requested.parameters:
        return None
    count = requested.parameters[_CLASSIFICATION].int64_param
    if requested.name != PROBABILITIES or count < 1:
        raise InvalidRequestError(
            f"{_CLASSIFICATION} of output {requested.name!r} is {count}; ask for 1 or more classes of {PROBABILITIES!r}"
        )
    return count


def _refuse_shared_memory(parameters: Iterable[str], name: str) -> None:
    if any(parameter.startswith(_SHARED_MEMORY) for parameter in parameters):
        raise InvalidRequestError(f"{name!r} is in shared memory, which this server does not read; send it in the call")


def answer(
    request: oip.ModelInferRequest,
    probabilities: NDArray[np.float32],
    *,
    class_names: Sequence[str],
    wanted: Sequence[WantedOutput],
) -> oip.ModelInferResponse:
    """Write the wanted outputs, raw.

    Args:
        request: its name and id come back.
        probabilities: float32 ``(images, classes)``.
        class_names: of the columns.
    """
    response = oip.ModelInferResponse(model_name=request.model_name, model_version=VERSION, id=request.id)
    for output in wanted:
        if output.name == PROBABILITIES and output.top_classes is None:
            datatype, shape = "FP32", probabilities.shape
            raw = probabilities.astype("<f4").tobytes()
        else:
            columns = np.argsort(-probabilities, axis=1, kind="stable")[:, : output.top_classes or 1]
            datatype, shape = "BYTES", columns.shape
            plain = output.name == LABELS
            raw = raw_bytes(
                (class_names[column] if plain else f"{row[column]:f}:{column}:{class_names[column]}").encode()
                for row, order in zip(probabilities, columns, strict=True)
                for column in order
            )
        response.outputs.append(
            oip.ModelInferResponse.InferOutputTensor(name=output.name, datatype=datatype, shape=shape)
        )
        response.raw_output_contents.append(raw)
    return response
