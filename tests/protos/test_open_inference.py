"""The Open Inference Protocol as it is on the wire: that of tritonclient, beside whose code ours can be imported."""

import subprocess
import sys

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from metanas_proto.inference import open_inference_pb2 as oip


def test_names_numbers_and_types_are_those_of_tritonclient():
    def compare(ours, theirs):
        for field in ours.fields:
            other = theirs.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated), field
        for nested in ours.nested_types:
            compare(nested, theirs.nested_types_by_name[nested.name])
        for kind in ours.enum_types:
            compare_values(kind, theirs.enum_types_by_name[kind.name])

    def compare_values(ours, theirs):
        assert {value.name: value.number for value in ours.values}.items() <= {
            value.name: value.number for value in theirs.values
        }.items()

    files = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
    messages = {name: message for file in files for name, message in file.message_types_by_name.items()}
    for name, message in oip.DESCRIPTOR.message_types_by_name.items():
        compare(message, messages[name])
    for name, kind in oip.DESCRIPTOR.enum_types_by_name.items():
        compare_values(kind, model_config_pb2.DESCRIPTOR.enum_types_by_name[name])
    (service,) = oip.DESCRIPTOR.services_by_name.values()
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == theirs.full_name
    assert {method.name for method in service.methods} <= {method.name for method in theirs.methods}


@pytest.mark.parametrize("first", ["metanas_proto", "tritonclient"])
def test_both_codes_of_the_package_can_be_imported_in_either_order(first):
    lines = [
        "from metanas_proto.inference import open_inference_pb2 as ours, open_inference_pb2_grpc",
        "from tritonclient.grpc import service_pb2 as theirs",
    ]
    code = [
        *(lines if first == "metanas_proto" else reversed(lines)),
        "data = ours.ModelInferRequest(model_name='a task', raw_input_contents=[b'x']).SerializeToString()",
        "print(theirs.ModelInferRequest.FromString(data).model_name)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a task\n"), done.stderr
