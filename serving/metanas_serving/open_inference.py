"""The calls of the Open Inference Protocol: each learnt task is a model, by its id or an alias.

    ServerLive, ServerReady, ModelReady    always answered
    ServerMetadata                         always answered
    ModelMetadata, ModelConfig             store -> open_inference_model
    ModelInfer                             store -> open_inference_codec -> codec -> classifier
    RepositoryIndex                        store, aliases

A second way to what Classify does, with the same gate, decoder, classifier, limits and statuses, so both
answer with the same bits. A tenant's tasks are all the models that there are for it.
"""

import time
from collections.abc import Sequence

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

import metanas
from metanas_proto.inference import open_inference_pb2 as oip
from metanas_proto.inference import open_inference_pb2_grpc
from metanas_serving import codec, open_inference_codec, open_inference_model, status
from metanas_serving.aliases import Aliases
from metanas_serving.call import answering, wanted
from metanas_serving.classifying import Classifier
from metanas_serving.errors import InvalidRequestError, NotServingError, TaskNotFoundError
from metanas_serving.facts import TaskFacts
from metanas_serving.gate import Gate
from metanas_serving.store import TaskStore
from metanas_serving.tenants import current
from metanas_serving.traces import Traces

SERVICE_NAME = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
SERVER_NAME = "metanas-edge"
EXTENSIONS = ("classification", "model_configuration")

_READY = "READY"


class OpenInferenceService(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers the protocol's calls of one server; safe for many threads, for its parts are."""

    def __init__(
        self,
        gate: Gate,
        store: TaskStore,
        *,
        aliases: Aliases,
        classifier: Classifier,
        max_images: int,
        traces: Traces,
    ) -> None:
        self._gate = gate
        self._store = store
        self._aliases = aliases
        self._classifier = classifier
        self._max_images = max_images
        self._traces = traces

    def ServerLive(  # noqa: N802
        self, request: oip.ServerLiveRequest, context: grpc.ServicerContext
    ) -> oip.ServerLiveResponse:
        """Say that the process answers."""
        return oip.ServerLiveResponse(live=True)

    def ServerReady(  # noqa: N802
        self, request: oip.ServerReadyRequest, context: grpc.ServicerContext
    ) -> oip.ServerReadyResponse:
        """Say whether calls pass the gate."""
        try:
            self._gate.check_open()
            return oip.ServerReadyResponse(ready=True)
        except NotServingError:
            return oip.ServerReadyResponse(ready=False)

    def ModelReady(  # noqa: N802
        self, request: oip.ModelReadyRequest, context: grpc.ServicerContext
    ) -> oip.ModelReadyResponse:
        """Say whether a task can be asked."""
        try:
            self._gate.check_open()
            self._facts(request.name, request.version)
            return oip.ModelReadyResponse(ready=True)
        except (NotServingError, TaskNotFoundError):
            return oip.ModelReadyResponse(ready=False)
        except Exception as error:
            status.abort(context, error)

    def ServerMetadata(  # noqa: N802
        self, request: oip.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> oip.ServerMetadataResponse:
        """Name the server."""
        return oip.ServerMetadataResponse(name=SERVER_NAME, version=metanas.__version__, extensions=EXTENSIONS)

    def ModelMetadata(  # noqa: N802
        self, request: oip.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> oip.ModelMetadataResponse:
        """Describe a task."""
        with answering(self._gate, context):
            return open_inference_model.metadata(self._facts(request.name, request.version), name=request.name)

    def ModelConfig(  # noqa: N802
        self, request: oip.ModelConfigRequest, context: grpc.ServicerContext
    ) -> oip.ModelConfigResponse:
        """Describe a task, with the limit of a call and its classes."""
        with answering(self._gate, context):
            facts = self._facts(request.name, request.version)
            return oip.ModelConfigResponse(
                config=open_inference_model.configuration(facts, name=request.name, max_images=self._max_images)
            )

    def ModelInfer(  # noqa: N802
        self, request: oip.ModelInferRequest, context: grpc.ServicerContext
    ) -> oip.ModelInferResponse:
        """Answer with a task."""
        with answering(self._gate, context):
            begin, check = time.perf_counter(), wanted(self._gate, context)
            facts = self._facts(request.model_name, request.model_version)
            outputs = open_inference_codec.read_outputs(request)
            images = codec.read_images(
                open_inference_codec.read_images(request, facts, max_images=self._max_images),
                facts.preprocessing,
                max_images=self._max_images,
                check=check,
            )
            decoded = time.perf_counter()
            probabilities = self._classifier.answer(facts.task_id, images, check=check).probabilities
            self._traces.stages(begin, decode=decoded, compute=time.perf_counter())
            return open_inference_codec.answer(request, probabilities, class_names=facts.class_names, wanted=outputs)

    def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: grpc.ServicerContext
    ) -> oip.RepositoryIndexResponse:
        """List all tasks, oldest first, and then their aliases by name."""
        with answering(self._gate, context):
            if request.repository_name:
                raise InvalidRequestError(
                    f"no repository {request.repository_name[:64]!r}: this server has one, without a name; "
                    "leave repository_name empty"
                )
            tasks = dict.fromkeys(facts.task_id for facts in self._store.owned_by(current()))
            # Not those of a task that cannot be read.
            aliases = [alias.name for alias in self._aliases.list(tenant=current()) if alias.task_id in tasks]
            index = oip.RepositoryIndexResponse.ModelIndex
            return oip.RepositoryIndexResponse(
                models=[
                    index(name=name, version=open_inference_model.VERSION, state=_READY) for name in (*tasks, *aliases)
                ]
            )

    def _facts(self, name: str, version: str) -> TaskFacts:
        if not name:
            raise InvalidRequestError(
                "the model's name is empty; send a task_id or an alias, RepositoryIndex lists them"
            )
        facts = self._store.owned(self._aliases.resolve(name, tenant=current()), tenant=current())
        if version not in ("", open_inference_model.VERSION):
            raise TaskNotFoundError(
                f"task {name} has no version {version[:64]!r}; ask for {open_inference_model.VERSION!r} or for none"
            )
        return facts


def pool_with(files: Sequence[FileDescriptor]) -> DescriptorPool:
    """A pool of these files and of the protocol's, whose code is in no pool with others (see protos/generate.py)."""
    pool = DescriptorPool()
    added: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name not in added:
            added.add(file.name)
            for needed in file.dependencies:
                add(needed)
            pool.AddSerializedFile(file.serialized_pb)

    for file in (*files, oip.DESCRIPTOR):
        add(file)
    return pool
