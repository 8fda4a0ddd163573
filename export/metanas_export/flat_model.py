"""The pieces of a ``.tflite`` file as they come: tensors, constants, operators.

    FlatModel    adds them by name, and packs them into the content of the file

Knows the schema that comes with the LiteRT runtime; nothing of ONNX, layouts and networks.
Imports the runtime's package when a model is begun, not before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanas_export.errors import FormatMissingError

_FILE_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3


class FlatModel:
    """One graph with a free batch size.

    Raises:
        FormatMissingError: the LiteRT runtime is not installed.
    """

    def __init__(self) -> None:
        try:
            from ai_edge_litert import schema_py_generated as schema
        except ImportError as error:
            raise FormatMissingError(
                f'LiteRT is not installed ({error}); install it with: pip install "metanas-edge[litert]"'
            ) from error
        self.schema: Any = schema
        self._model: Any = schema.ModelT()
        self._graph: Any = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        # By convention the first buffer is empty, and tensors without values name it.
        self._model.buffers = [schema.BufferT()]
        self._codes: dict[int, int] = {}
        self._numbers: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def tensor(
        self, name: str, shape: Sequence[int], *, kind: str = "FLOAT32", steps: NDArray[np.float32] | None = None
    ) -> str:
        """A tensor that is calculated; ``shape`` is that of one image, without the batch.

        Args:
            steps: the step of an int8 tensor, ``(1,)``; its zero point is 0.
        """
        made = self._add(name, (1, *shape), kind=kind)
        made.shapeSignature = [-1, *shape]
        if steps is not None:
            made.quantization = self._quantisation(steps, axis=0)
        return name

    def fixed(self, name: str, shape: Sequence[int]) -> str:
        """A float32 tensor that is calculated of constants: no batch."""
        self._add(name, shape, kind="FLOAT32")
        return name

    def constant(
        self, name: str, values: NDArray[Any], *, steps: NDArray[np.float32] | None = None, axis: int = 0
    ) -> str:
        """A tensor that is part of the file; int8 ones have a step for each entry along ``axis``."""
        kinds = {"float32": "FLOAT32", "float16": "FLOAT16", "int8": "INT8", "int32": "INT32"}
        made = self._add(name, values.shape, kind=kinds[str(values.dtype)])
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), dtype=np.uint8)
        self._model.buffers.append(buffer)
        made.buffer = len(self._model.buffers) - 1
        if steps is not None:
            made.quantization = self._quantisation(steps, axis=axis)
        return name

    def operator(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *, options: str | None = None, **values: Any
    ) -> None:
        """An operator; ``values`` are attributes of its ``options``."""
        schema = self.schema
        made = schema.OperatorT()
        code = getattr(schema.BuiltinOperator, kind)
        made.opcodeIndex = self._codes.setdefault(code, len(self._codes))
        made.inputs = [self._numbers[name] for name in inputs]
        made.outputs = [self._numbers[name] for name in outputs]
        if options is not None:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            made.builtinOptions = getattr(schema, f"{options}T")()
            for name, value in values.items():
                setattr(made.builtinOptions, name, value)
        self._graph.operators.append(made)

    def pack(self, *, inputs: Mapping[str, str], outputs: Mapping[str, str], description: str, notes: bytes) -> bytes:
        """The content of the file.

        Args:
            inputs, outputs: the names that callers use, and the tensors that these stand for.
            notes: kept in the file's metadata under the name ``metanas``.
        """
        import flatbuffers

        schema, model, graph = self.schema, self._model, self._graph
        graph.inputs = [self._numbers[name] for name in inputs.values()]
        graph.outputs = [self._numbers[name] for name in outputs.values()]
        model.version, model.description, model.subgraphs = _SCHEMA_VERSION, description, [graph]
        model.operatorCodes = [self._code(code) for code in self._codes]
        note, entry = schema.BufferT(), schema.MetadataT()
        note.data = np.frombuffer(notes, dtype=np.uint8)
        model.buffers.append(note)
        entry.name, entry.buffer = "metanas", len(model.buffers) - 1
        model.metadata = [entry]
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs = [self._named(*pair) for pair in inputs.items()]
        signature.outputs = [self._named(*pair) for pair in outputs.items()]
        model.signatureDefs = [signature]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _add(self, name: str, shape: Sequence[int], *, kind: str) -> Any:
        made = self.schema.TensorT()
        made.name, made.shape = name, list(shape)
        made.type = getattr(self.schema.TensorType, kind)
        made.buffer, made.hasRank = 0, True
        self._numbers[name] = len(self._graph.tensors)
        self._graph.tensors.append(made)
        return made

    def _quantisation(self, steps: NDArray[np.float32], *, axis: int) -> Any:
        made = self.schema.QuantizationParametersT()
        made.scale, made.zeroPoint = steps.astype(np.float32), np.zeros(len(steps), dtype=np.int64)
        made.quantizedDimension = axis
        return made

    def _code(self, code: int) -> Any:
        made = self.schema.OperatorCodeT()
        made.builtinCode, made.version = code, 1
        # The byte that readers looked at before there were more than 127 operators.
        made.deprecatedBuiltinCode = min(code, 127)
        return made

    def _named(self, name: str, tensor: str) -> Any:
        made = self.schema.TensorMapT()
        made.name, made.tensorIndex = name, self._numbers[tensor]
        return made
