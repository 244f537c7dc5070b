"""The protocol without a network: what tritonclient writes is read as it was meant, and back.

Invariants: any tensors -> tritonclient's encoder -> parse() -> the same tensors; any answer ->
encode() -> tritonclient's decoder -> the same answer; any bytes -> a Request or an InputError.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agent import Answer, EncodedImage
from agent.http import oip, wire
from agent.http.body_buffer import ALIGNMENT, BodyBuffer
from agent.http.oip import OipRequest
from edge_core.errors import InputError, Unavailable
from edge_core.package.manifest import PackagedModel, RuntimeNeed
from edge_core.package.preprocess import ImageRecipe
from edge_core.package.run import Scored
from edge_core.tensors import DTYPES, Array, Feeds, TensorSpec

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
TEXT = st.text(max_size=9)
Client = triton.InferenceServerClient


def manifest(
    inputs: dict[str, tuple[str, tuple[int | str, ...]]],
    outputs: dict[str, tuple[str, tuple[int | str, ...]]],
    **more: Any,
) -> PackagedModel:
    return PackagedModel(
        **{
            "name": "m",
            "version": "3",
            "variant": "here",
            "candidate": "onnx-fp32",
            "entry": "model.onnx",
            "runtime": RuntimeNeed("onnxruntime", "1", "1"),
            "inputs": tuple(
                TensorSpec(name, dtype, shape) for name, (dtype, shape) in inputs.items()
            ),
            "outputs": tuple(
                TensorSpec(name, dtype, shape) for name, (dtype, shape) in outputs.items()
            ),
            **more,
        }
    )


DENSE = manifest({"x": ("float32", (1, 4))}, {"y": ("float32", (1, 3))}, labels=("a", "b", "c"))
PICTURE = manifest(
    {"x": ("float32", (1, 3, 8, 8))},
    {"y": ("float32", (1, 3))},
    preprocess=ImageRecipe(height=8, width=8),
)
STRINGS = manifest({"x": ("string", ("n",))}, {"y": ("float32", (1, 3))}, class_scores=False)


@st.composite
def tensor(draw: st.DrawFn, *, finite: bool) -> Array:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(SHAPES)
    if dtype == "string":
        return draw(hnp.arrays(object, shape, elements=TEXT))
    elements = hnp.from_dtype(np.dtype(dtype), allow_nan=not finite, allow_infinity=not finite)
    return draw(hnp.arrays(dtype, shape, elements=elements))


def kind(array: Array) -> str:
    return "string" if array.dtype == object else array.dtype.name


def same(first: Array, second: Array) -> bool:
    exact = first.dtype == second.dtype and first.shape == second.shape
    return exact and np.array_equal(first, second, equal_nan=first.dtype.kind == "f")


def body_of(inputs: list[triton.InferInput], **more: Any) -> tuple[memoryview, int | None]:
    """What tritonclient sends, put together as the server does."""
    raw, length = Client.generate_request_body(inputs, **more)
    pieces = BodyBuffer()
    pieces += raw
    return pieces.join(length or 0), length


def encode_input(name: str, array: Array, *, binary: bool = True) -> triton.InferInput:
    tensor_input = triton.InferInput(name, list(array.shape), wire.datatype_of(array))
    return tensor_input.set_data_from_numpy(array, binary_data=binary)


def request(document: object, tail: bytes = b"", *, of: PackagedModel = DENSE) -> OipRequest:
    text = json.dumps(document).encode()
    length = len(text) if tail else None
    return oip.parse(memoryview(text + tail), length, of)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_tritonclient_encodes_is_parsed_as_the_same_tensors(data: st.DataObject):
    binary = data.draw(st.lists(st.booleans(), min_size=1, max_size=4))
    arrays = {
        f"in {i}": data.draw(tensor(finite=not is_binary)) for i, is_binary in enumerate(binary)
    }
    spec = manifest(
        {name: (kind(array), array.shape) for name, array in arrays.items()}, {"y": ("int8", ())}
    )
    inputs = [
        encode_input(name, array, binary=is_binary)
        for (name, array), is_binary in zip(arrays.items(), binary, strict=True)
    ]
    body, length = body_of(inputs, request_id="7", timeout=2500)
    parsed = oip.parse(body, length, spec)
    assert isinstance(parsed.inputs, dict)
    assert list(parsed.inputs) == list(arrays)
    assert all(same(parsed.inputs[name], array) for name, array in arrays.items())
    assert all(array.flags.aligned and array.flags.c_contiguous for array in parsed.inputs.values())
    assert (parsed.id, parsed.deadline_ms) == ("7", 2.5)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_encoded_is_decoded_by_tritonclient_as_the_same_tensors(data: st.DataObject):
    binary = data.draw(st.lists(st.booleans(), min_size=1, max_size=4))
    arrays = {
        f"out {i}": data.draw(tensor(finite=not is_binary)) for i, is_binary in enumerate(binary)
    }
    outputs = tuple(
        oip.RequestedOutput(output_name, is_binary)
        for output_name, is_binary in zip(arrays, binary, strict=True)
    )
    answer = Answer(model="m", version="3", digest="", outputs=arrays)
    headers, parts = oip.encode(answer, OipRequest(inputs={}, outputs=outputs, id="é"))
    header_fields = dict(headers)
    raw = b"".join(parts)
    assert int(header_fields[b"content-length"]) == len(raw)
    result = Client.parse_response_body(
        raw, header_length=int(header_fields[oip.LENGTH]) if oip.LENGTH in header_fields else None
    )
    assert result.get_response()["id"] == "é"
    for (name, array), is_binary in zip(arrays.items(), binary, strict=True):
        decoded = result.as_numpy(name)
        if array.dtype == object and is_binary and array.size:  # what is on the wire
            decoded = np.array([text.decode() for text in decoded.flat], object).reshape(
                decoded.shape
            )
        assert same(decoded, array)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_are_a_request_or_an_input_error(data: st.DataObject):
    array = np.arange(4, dtype=np.float32).reshape(1, 4)
    raw, length = Client.generate_request_body(
        [encode_input("x", array, binary=data.draw(st.booleans()))],
        outputs=[triton.InferRequestedOutput("y", class_count=2)],
    )
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        piece = data.draw(st.binary(max_size=4))
        damaged[at : at + data.draw(st.integers(0, 9))] = piece
    length = data.draw(st.sampled_from([length, None, len(damaged), 10]))
    with suppress(InputError):  # the only error allowed out
        assert isinstance(oip.parse(memoryview(bytes(damaged)), length, DENSE), OipRequest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    field=st.sampled_from(["name", "shape", "datatype", "data", "parameters", "inputs", "id"]),
    value=JSON,
)
def test_any_value_in_any_field_is_accepted_or_refused(field: str, value: object):
    x = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    document: dict[str, object] = {"inputs": [x]}
    (document if field in ("inputs", "id", "parameters") else x)[field] = value
    with suppress(InputError):
        assert isinstance(request(document).inputs, dict)


X = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}


def x(**changes: object) -> dict[str, object]:
    return {"inputs": [{**X, **changes}]}


def bytes_of(size: int, **changes: object) -> dict[str, object]:
    small = {field: value for field, value in X.items() if field != "data"}
    return {"inputs": [{**small, "parameters": {"binary_data_size": size}, **changes}]}


BIG = 2**31 - 1


@pytest.mark.parametrize(
    ("document", "tail", "why"),
    [
        ({}, b"", "missing required field `inputs`"),
        ([], b"", "Expected `object`"),
        (x(name="z"), b"", "the model has no input 'z'; inputs: x"),
        ({"inputs": [X, X]}, b"", "input 'x' is given twice"),
        (x(shape=[4, -1]), b"", "$.inputs[0].shape"),
        (x(shape=[2**70]), b"", "$.inputs[0].shape"),
        (x(shape=[1.0, 4.0]), b"", "$.inputs[0].shape"),
        (x(shape=[1] * 33), b"", "$.inputs[0].shape"),
        (x(shape=[BIG, BIG]), b"", "at most"),
        (x(shape=[0, BIG, BIG]), b"", "at most"),
        (x(shape=[1, 5]), b"", "input 'x' has shape 1x5; the model takes 1x4"),
        (x(datatype="BF16"), b"", "datatype 'BF16'; one of: FP32"),
        (x(datatype="fp32"), b"", "datatype 'fp32'"),
        (x(data=[1, 2, 3]), b"", "has 3 elements"),
        (x(data=[[1, 2], [3, 4]]), b"", "not nested like its shape [1,4]"),
        (x(data=[[1, 2, 3, 4], []]), b"", "not nested like its shape"),
        (x(data=[[[1, 2, 3, 4]]]), b"", "flat or nested"),
        (x(data=[1, 2, 3, "4"]), b"", "'data' is not FP32"),
        (x(data=[1, 2, 3, True]), b"", "'data' is not FP32"),
        (x(data=[1, 2, 3, None]), b"", "'data' is not FP32"),
        (x(data=7), b"", "'data' is an array"),
        (x(data={}), b"", "'data' is an array"),
        (x(datatype="INT32", data=[1, 2, 3, 4.5]), b"", "'data' is not INT32"),
        (x(datatype="UINT8", data=[1, 2, 3, 256]), b"", "'data' is not UINT8"),
        (x(datatype="UINT64", data=[1, 2, 3, -1]), b"", "'data' is not UINT64"),
        (x(datatype="UINT64", data=[1, 2, 3, 2**64]), b"", "'data' is not UINT64"),
        (x(datatype="INT64", data=[1, 2, 3, 2**63]), b"", "'data' is not INT64"),
        (x(datatype="BOOL", data=[0, 1, 0, 1]), b"", "'data' is not BOOL"),
        (x(parameters={"binary_data_size": 16}), b"", "either 'data' or"),
        (bytes_of(16), b"", "has 16 bytes; 0 remain"),
        (bytes_of(16), b"\0" * 15, "has 16 bytes; 15 remain"),
        (bytes_of(16), b"\0" * 17, "1 bytes that belong to no input"),
        (bytes_of(20), b"\0" * 20, "has 20 bytes; FP32 of shape [1,4] has 16"),
        (bytes_of(-1), b"", "binary_data_size"),
        (bytes_of(2**80), b"", "bytes; 0 remain"),
        (bytes_of(4, datatype="BOOL"), b"\0\1\2\1", "a BOOL is a byte of 0 or 1"),
        (bytes_of(4, datatype="BYTES", shape=[1]), b"\0\0\0\0", "no preprocessing recipe"),
        (x(parameters={"shared_memory_region": "a"}), b"", "shared_memory_region"),
        ({**x(), "parameters": {"timeuot": 3}}, b"", "timeuot"),
        ({**x(), "parameters": {"timeout": -3}}, b"", "$.parameters.timeout"),
        ({**x(), "parameters": {"timeout": 2**63}}, b"", "$.parameters.timeout"),
        ({**x(), "parameters": {"deadline_ms": "soon"}}, b"", "$.parameters.deadline_ms"),
        ({**x(), "parameters": {"top": 1001}}, b"", "$.parameters.top"),
        ({**x(), "parameters": {"priority": 1}}, b"", "priority"),
        ({**x(), "outputs": [{"name": "z"}]}, b"", "no output 'z'; outputs: y"),
        ({**x(), "outputs": [{"name": "y"}, {"name": "y"}]}, b"", "asked for twice"),
        ({**x(), "id": 7}, b"", "$.id"),
        ({**x(), "id": "i" * 2000}, b"", "$.id"),
    ],
)
def test_a_bad_request_is_refused_with_its_field(document: object, tail: bytes, why: str):
    with pytest.raises(InputError) as caught:
        request(document, tail)
    assert why in f"{caught.value.what}; {caught.value.hint}"


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff", b'{"inputs":' * 100_000, b"[" * 1_000_000, b'{"a":' + b"[" * 1_000_000,
     b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":' + b"[" * 100_000],
    ids=["nothing", "cut", "no UTF-8", "deep objects", "deep arrays", "deep and unknown", "data"],
)  # fmt: skip
def test_what_is_no_json_document_is_refused(text: bytes):
    with pytest.raises(InputError):
        oip.parse(memoryview(text), None, DENSE)


PAIRS = manifest({"x": ("string", ("n", 2))}, {"y": ("float32", (1, 3))}, class_scores=False)
QUANTISED = msgspec.structs.replace(DENSE, inputs=(TensorSpec("x", "int8", (1, 4), "", 0.5, 0),))


@pytest.mark.parametrize(
    ("of", "datatype", "shape", "why"),
    [
        (DENSE, "FP32", [1, 4, 1], "input 'x' has shape 1x4x1; the model takes 1x4"),
        (DENSE, "FP32", [], "input 'x' has shape a scalar; the model takes 1x4"),
        (DENSE, "FP32", [2**20, 4], "input 'x' has shape 1048576x4; the model takes 1x4"),
        (STRINGS, "FP32", [1], "input 'x' has datatype FP32; the model takes BYTES"),
        (PAIRS, "BYTES", [1, 3], "input 'x' has shape 1x3; the model takes nx2"),
        (manifest({"x": ("int8", (1,))}, {}), "FP32", [1], "the model takes INT8"),
        (manifest({"x": ("bool", (1,))}, {}), "INT8", [1], "the model takes BOOL"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_whatever_its_data(of, datatype, shape, why):
    with pytest.raises(InputError) as caught:
        request(bytes_of(1, datatype=datatype, shape=shape), b"?", of=of)
    assert why in caught.value.what


@pytest.mark.parametrize(
    ("of", "datatype"),
    [(DENSE, "INT8"), (DENSE, "BOOL"), (DENSE, "FP64"), (QUANTISED, "FP32"), (QUANTISED, "INT8"),
     (manifest({"x": ("int8", (1, 4))}, {}), "INT64")],
)  # fmt: skip
def test_a_datatype_whose_values_may_be_cast_without_loss_is_taken(
    of: PackagedModel, datatype: str
):
    size = 4 * np.dtype(wire.DATATYPES[datatype]).itemsize
    assert request(bytes_of(size, datatype=datatype), bytes(size), of=of).inputs


MANY = 1_000_000
HUGE = {
    "a shape of its own": (DENSE, "FP32", [MANY, 4], "1," * 4 * MANY + "1"),
    "too many numbers": (DENSE, "FP32", [1, 4], "1," * 4 * MANY + "1"),
    "too many lists": (DENSE, "FP32", [1, 4], "[]," * 2 * MANY + "[]"),
    "too many texts": (PAIRS, "BYTES", [1, 2], '"a",' * MANY + '"a"'),
    "too many escaped texts": (PAIRS, "BYTES", [1, 2], r'"\\\\",' * MANY + '"a"'),
    "too many lists of texts": (PAIRS, "BYTES", [1, 2], "[]," * 2 * MANY + "[]"),
    "too many lists of none": (PAIRS, "BYTES", [0, 2], "[]," * 2 * MANY + "[]"),
    "a picture in JSON": (PICTURE, "BYTES", [1], '"a",' * MANY + '"a"'),
}


@pytest.mark.parametrize(("of", "datatype", "shape", "data"), HUGE.values(), ids=HUGE.keys())
def test_json_that_does_not_fit_takes_no_more_memory_than_its_text(of, datatype, shape, data):
    tensor_text = f'"name": "x", "shape": {shape}, "datatype": "{datatype}", "data": [{data}]'
    text = f'{{"inputs": [{{{tensor_text}}}]}}'.encode()
    tracemalloc.start()
    assert len(text) < oip.MAX_JSON
    with pytest.raises(InputError):
        oip.parse(memoryview(text), None, of)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1.5 * len(text)


def test_one_text_may_have_many_quotes_and_commas():
    text = '"a", ' * 1000
    document = {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [text]}]}
    inputs = request(document, of=STRINGS).inputs
    assert isinstance(inputs, dict)
    assert inputs["x"].tolist() == [text]


def test_the_json_part_is_bounded():
    text = json.dumps(x(data=[0.1] * 2_000_000)).encode()
    assert len(text) > oip.MAX_JSON
    with pytest.raises(oip.TooLarge, match="send large tensors as binary data"):
        oip.parse(memoryview(text), None, DENSE)
    with pytest.raises(oip.TooLarge):
        oip.json_length([(oip.LENGTH, b"%d" % (oip.MAX_JSON + 1))])


@pytest.mark.parametrize("value", [b"", b"-1", b"1.0", b" 1", b"0x10", b"9" * 13, b"\xb2"])
def test_a_json_length_that_is_no_number_is_refused(value: bytes):
    with pytest.raises(InputError):
        oip.json_length([(oip.LENGTH, value)])


def test_a_json_length_is_given_once_or_never():
    assert oip.json_length([(b"host", b"here")]) is None
    assert oip.json_length([(oip.LENGTH, b"12")]) == 12
    with pytest.raises(InputError):
        oip.json_length([(oip.LENGTH, b"12"), (oip.LENGTH, b"12")])


def test_a_json_length_beyond_the_body_is_refused():
    with pytest.raises(InputError, match="the body has 2 bytes"):
        oip.parse(memoryview(b"{}"), 3, DENSE)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\1\0", "2 bytes hold 0 BYTES elements, not 1"),
        (b"\5\0\0\0abc", "7 bytes hold 0 BYTES elements, not 1"),
        (b"\xff\xff\xff\xffabc", "7 bytes hold 0 BYTES elements, not 1"),
        (b"\1\0\0\0ab", "1 bytes after its 1 BYTES elements"),
        (b"\1\0\0\0\xff", "element 0 is not UTF-8"),
    ],
)
def test_bytes_elements_have_the_length_that_they_say(raw: bytes, why: str):
    document = bytes_of(len(raw), datatype="BYTES", shape=[1])
    with pytest.raises(InputError, match=why):
        request(document, raw, of=STRINGS)


def test_more_strings_than_memory_should_hold_are_refused():
    document = bytes_of(0, datatype="BYTES", shape=[wire.MAX_STRINGS + 1])
    with pytest.raises(InputError, match="at most 1048576 elements"):
        request(document, of=STRINGS)


def test_a_picture_is_one_element_of_bytes_for_a_package_with_a_recipe():
    raw = struct.pack("<I", 3) + b"\x89PN"
    for shape in ([1], [1, 1]):
        parsed = request(bytes_of(7, datatype="BYTES", shape=shape), raw, of=PICTURE)
        assert parsed.inputs == EncodedImage(b"\x89PN")
    two = bytes_of(8, datatype="BYTES", shape=[2])
    with pytest.raises(InputError, match="a picture is one BYTES element"):
        request(two, b"\0" * 8, of=PICTURE)
    with pytest.raises(InputError, match="sent as binary data"):
        request(x(datatype="BYTES", shape=[1], data=["png"]), of=PICTURE)


def test_the_shorter_of_both_deadlines_counts_and_none_is_the_default():
    assert request(x()).deadline_ms is None
    both = {**x(), "parameters": {"timeout": 3000, "deadline_ms": 2.5}}
    assert request(both).deadline_ms == 2.5
    assert request({**x(), "parameters": {"timeout": 0}}).deadline_ms is None


def test_binary_data_of_an_output_is_what_it_says_or_what_the_request_says():
    def is_binary(default: bool | None, own: bool | None) -> bool:
        document = {**x(), "outputs": [{"name": "y", "parameters": {}}]}
        if default is not None:
            document["parameters"] = {"binary_data_output": default}
        if own is not None:
            document["outputs"] = [{"name": "y", "parameters": {"binary_data": own}}]
        return request(document).outputs[0].binary

    cases = [(None, None), (True, None), (True, False), (None, True)]
    assert [is_binary(*case) for case in cases] == [
        False, True, False, True,
    ]  # fmt: skip


def test_notes_beside_the_protocols_own_fields_are_allowed():
    assert request({**x(), "model_name": "m", "anything": [1]}).inputs


def test_top_needs_class_scores_and_a_free_name():
    document = {"inputs": [], "parameters": {"top": 1}}
    with pytest.raises(InputError, match="gives no class scores"):
        request(document, of=STRINGS)
    spec = manifest({}, {"labels": ("float32", (1, 3))})
    with pytest.raises(InputError, match="'classification' of an output"):
        request(document, of=spec)


@pytest.mark.parametrize("spec", [("string", (1, 3)), ("float32", (1, 3, 2)), ("float32", ())])
def test_classification_needs_rows_of_scores(spec: tuple[str, tuple[int, ...]]):
    asked = {"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 1}}]}
    with pytest.raises(InputError, match="no rows of class scores"):
        request(asked, of=manifest({}, {"y": spec}))


def classify(scores: Array, count: int, *, version: str = "3") -> list[Any]:
    answer = Answer(model="m", version=version, digest="", outputs={"y": scores})
    asked = OipRequest(
        inputs={},
        outputs=(oip.RequestedOutput("y", False, count),),
        version="3",
        labels=("a", "b: c"),
    )
    (output,) = json.loads(b"".join(oip.encode(answer, asked)[1]))["outputs"]
    assert output["datatype"] == "BYTES"
    return [output["shape"], output["data"]]


def test_classes_have_tritons_form_best_first_the_lower_index_of_equals():
    scores = np.array([[0.25, 0.5, 0.25]], np.float32)
    assert classify(scores, 3) == [[1, 3], ["0.5:1:b: c", "0.25:0:a", "0.25:2"]]
    assert classify(scores[0], 9) == [[3], ["0.5:1:b: c", "0.25:0:a", "0.25:2"]]
    rows = np.array([[1, 200], [7, 3]], np.uint8)
    assert classify(rows, 1) == [[2, 1], ["200:1:b: c", "7:0:a"]]
    assert classify(np.empty((0, 3), np.float32), 2) == [[0, 2], []]


def test_labels_of_another_version_are_not_given():
    scores = np.array([[0.25, 0.5]], np.float32)
    assert classify(scores, 1, version="4") == [[1, 1], ["0.5:1"]]


@pytest.mark.parametrize("outputs", [{"z": np.zeros((1, 3))}, {"y": np.zeros((1, 3, 1))}])
def test_an_answer_of_a_model_that_came_meanwhile_and_does_not_fit_is_unavailable(outputs):
    answer = Answer(model="m", version="4", digest="", outputs=outputs)
    asked = OipRequest(inputs={}, outputs=(oip.RequestedOutput("y", False, 2),), version="3")
    with pytest.raises(Unavailable, match="m was swapped to 4 meanwhile"):
        oip.encode(answer, asked)


def test_top_adds_the_agents_best_classes_as_an_output():
    answer = Answer(
        model="m", version="3", digest="", cached="exact",
        outputs={"y": np.array([[0.1, 0.9]], np.float32)}, top=(Scored(1, "b", 0.9),),
    )  # fmt: skip
    asked = OipRequest(inputs={}, outputs=(oip.RequestedOutput("y", False),), top=1)
    document = json.loads(b"".join(oip.encode(answer, asked)[1]))
    assert document["parameters"] == {"cached": "exact"}
    assert document["outputs"][1] == {
        "name": "labels", "datatype": "BYTES", "shape": [1], "data": ["0.9:1:b"],
    }  # fmt: skip


def test_top_of_several_rows_are_the_best_classes_of_each():
    scores = np.array([[0.25, 0.75], [1, 0]], np.float32)
    answer = Answer(model="m", version="3", digest="", outputs={"y": scores})
    asked = OipRequest(
        inputs={}, outputs=(oip.RequestedOutput("y", False),), top=1, version="3", labels=("a", "b")
    )
    document = json.loads(b"".join(oip.encode(answer, asked)[1]))
    assert document["outputs"][1] == {
        "name": "labels", "datatype": "BYTES", "shape": [2, 1], "data": ["0.75:1:b", "1.0:0:a"],
    }  # fmt: skip


def test_json_has_no_word_for_what_is_not_finite():
    values = np.array([np.nan, np.inf, 1], np.float32)
    answer = Answer(model="m", version="3", digest="", outputs={"y": values})
    asked = OipRequest(inputs={}, outputs=(oip.RequestedOutput("y", False),))
    assert json.loads(b"".join(oip.encode(answer, asked)[1]))["outputs"][0]["data"] == [
        None, None, 1.0,
    ]  # fmt: skip


def test_binary_tensors_are_not_copied():
    pixels = np.arange(150_528, dtype=np.float32).reshape(1, 3, 224, 224)
    body, length = body_of([encode_input("x", pixels)])
    spec = manifest({"x": ("float32", pixels.shape)}, {"y": ("float32", pixels.shape)})
    inputs = oip.parse(body, length, spec).inputs
    assert isinstance(inputs, dict)
    assert np.shares_memory(inputs["x"], np.frombuffer(body, np.uint8))
    outputs: Feeds = {"y": pixels}
    _, parts = oip.encode(
        Answer(model="m", version="3", digest="", outputs=outputs),
        OipRequest(inputs={}, outputs=(oip.RequestedOutput("y", True),)),
    )
    assert np.shares_memory(np.frombuffer(parts[1], np.uint8), pixels)


@given(sizes=st.lists(st.integers(0, 9000), max_size=6), lead=st.integers(0, 500))
def test_pieces_are_joined_in_order_with_an_aligned_lead(sizes: list[int], lead: int):
    pieces, expected = BodyBuffer(), b""
    for i, size in enumerate(sizes):
        piece = bytes([i]) * size
        pieces += piece
        expected += piece
    joined = pieces.join(lead)
    assert bytes(joined) == bytes(pieces) == expected
    assert len(pieces) == len(expected)
    address = np.frombuffer(joined, np.uint8).__array_interface__["data"][0] if expected else -lead
    assert (address + lead) % ALIGNMENT == 0


def test_a_body_of_many_tiny_pieces_takes_little_more_than_its_size():
    tracemalloc.start()
    pieces = BodyBuffer()
    for _ in range(100_000):
        pieces += bytes(2)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pieces) == 200_000
    assert held < 300_000
