"""A task in the words of the Open Inference Protocol: a model with one input and two outputs.

    metadata        TaskFacts  ->  ModelMetadataResponse
    configuration   TaskFacts  ->  ModelConfig, what Triton's clients ask for beside it

The protocol gives an input one datatype. The one declared is UINT8, for any bytes of it are valid; the
configuration names the others that ``open_inference_codec`` takes.
"""

import json

from metanas_proto.inference import open_inference_pb2 as oip
from metanas_serving.facts import TaskFacts

VERSION = "1"
PLATFORM = "metanas_edge"
INPUT = "images"
PROBABILITIES, LABELS = "probabilities", "labels"
# Of the input; the first is the one declared.
DATATYPES = ("UINT8", "FP32", "BYTES")

_ANY = -1


def image_shape(facts: TaskFacts) -> tuple[int, int, int]:
    """What one image of a tensor is: ``(height, width, channels)``."""
    preprocessing = facts.preprocessing
    return preprocessing.height, preprocessing.width, preprocessing.channels


def metadata(facts: TaskFacts, *, name: str) -> oip.ModelMetadataResponse:
    """Describe a task's input and outputs, under the name by which it was asked for."""
    tensor = oip.ModelMetadataResponse.TensorMetadata
    return oip.ModelMetadataResponse(
        name=name,
        versions=[VERSION],
        platform=PLATFORM,
        inputs=[tensor(name=INPUT, datatype=DATATYPES[0], shape=[_ANY, *image_shape(facts)])],
        outputs=[
            tensor(name=PROBABILITIES, datatype="FP32", shape=[_ANY, len(facts.class_names)]),
            tensor(name=LABELS, datatype="BYTES", shape=[_ANY, 1]),
        ],
    )


def configuration(facts: TaskFacts, *, name: str, max_images: int) -> oip.ModelConfig:
    """Describe a task as ``metadata`` does, with the most images of a call and the names of its classes."""
    return oip.ModelConfig(
        name=name,
        platform=PLATFORM,
        max_batch_size=max_images,
        input=[
            oip.ModelInput(
                name=INPUT, data_type=oip.TYPE_UINT8, format=oip.ModelInput.FORMAT_NHWC, dims=image_shape(facts)
            )
        ],
        output=[
            oip.ModelOutput(name=PROBABILITIES, data_type=oip.TYPE_FP32, dims=[len(facts.class_names)]),
            oip.ModelOutput(name=LABELS, data_type=oip.TYPE_STRING, dims=[1]),
        ],
        parameters={
            "class_names": oip.ModelParameter(string_value=json.dumps(facts.class_names, ensure_ascii=False)),
            "datatypes": oip.ModelParameter(string_value=",".join(DATATYPES)),
        },
    )
