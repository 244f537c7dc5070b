"""Golden vectors: what passes, what does not, and the file that holds them."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxruntime.quantization import QuantType, quantize_dynamic

from edge_core.errors import InputError, PackageError
from edge_core.package import golden, npz
from edge_core.tensors import DTYPES
from tests import packages

NUMBERS = [d for d in DTYPES if d != "string"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = st.sampled_from(NUMBERS).flatmap(lambda d: hnp.arrays(d, SHAPES))
STRINGS = hnp.arrays(object, SHAPES, elements=st.text(max_size=8), fill=st.nothing())
FEEDS = st.dictionaries(st.text(max_size=12), ARRAYS | STRINGS, min_size=1, max_size=4)
FLOATS = hnp.arrays(np.float32, (3, 5), elements=st.floats(-1e6, 1e6, width=32))


def one(original, artifact):
    """Golden vectors of one sample with one output."""
    return golden.make(({"x": np.zeros(1)},), ({"y": original},), ({"y": artifact},))


def check_outputs(vectors, y):
    return golden.check(vectors, lambda _: {"y": y})


def same(one, two):
    floats = one.dtype.kind == "f"
    return (
        one.shape == two.shape
        and one.dtype == two.dtype
        and np.array_equal(one, two, equal_nan=floats)
    )


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Golden vectors of a real quantised model, with the model."""
    folder = tmp_path_factory.mktemp("real")
    manifest, files = packages.make_contents(folder)
    (variant,) = manifest.variants
    return golden.from_bytes(files[variant.title("golden.npz")]), files[
        variant.title(variant.entry)
    ]


@given(inputs=FEEDS, outputs=FEEDS)
def test_the_file_gives_back_what_was_put_in(inputs, outputs):
    tolerance = dict.fromkeys(outputs, 0.5)  # any value will do; the arrays are not compared
    vectors = golden.make((inputs,), (outputs,), (outputs,), tolerance)
    read = golden.from_bytes(vectors.to_bytes())
    assert read.tolerance == tolerance
    for put, got in (
        (inputs, read.inputs[0]), (outputs, read.original[0]), (outputs, read.artifact[0]),
    ):  # fmt: skip
        assert list(put) == list(got)
        assert all(same(put[name], got[name]) for name in put)
    assert read.to_bytes() == vectors.to_bytes()


@given(y=FLOATS)
def test_the_recorded_outputs_pass(y):
    assert check_outputs(one(y, y), y).ok


@given(original=FLOATS, artifact=FLOATS)
def test_a_device_that_computes_like_the_original_passes(original, artifact):
    assert check_outputs(one(original, artifact), original).ok


@given(
    original=FLOATS,
    artifact=FLOATS,
    direction=hnp.arrays(np.float64, (3, 5), elements=st.floats(-1, 1)),
    share=st.floats(0, 4),
)
def test_only_what_is_within_the_tolerance_passes(original, artifact, direction, share):
    original, artifact = original.astype(np.float64), artifact.astype(np.float64)
    vectors = one(original, artifact)
    tolerance = vectors.tolerance["y"]
    peak = np.abs(artifact).max()
    rule = max(1e-3 * peak, 2 * np.sqrt(np.mean((original - artifact) ** 2)))
    assert tolerance == pytest.approx(rule, rel=1e-9, abs=1e-300)
    size = np.sqrt(np.mean(direction**2))
    assume(size > 1e-3 and tolerance > 1e-9 and not 0.999 < share < 1.001)
    moved = artifact + direction * (share * tolerance / size)
    assert check_outputs(vectors, moved).ok == (share < 1)


@given(y=FLOATS, data=st.data(), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_nan_and_infinity_pass_only_where_they_were_recorded(y, data, bad):
    at = data.draw(st.integers(0, y.size - 1))
    broken = y.copy()
    broken.flat[at] = bad
    result = check_outputs(one(y, y), broken)
    assert not result.ok
    what = "1 NaN and 0 infinite" if np.isnan(bad) else "0 NaN and 1 infinite"
    assert result.text == (
        f"'y' has {what} values, the build recorded 0 NaN and 0 infinite values, in sample 0"
    )
    assert check_outputs(one(broken, broken), broken).ok
    assert not check_outputs(one(broken, broken), y).ok


@given(y=hnp.arrays(st.sampled_from(["int64", "uint8", "bool"]), (7,)), data=st.data())
def test_integers_and_bools_are_equal_or_wrong(y, data):
    at = data.draw(st.integers(0, 6))
    other = y.copy()
    other[at] = not y[at] if y.dtype == bool else y[at] ^ 1
    vectors = one(y, y)
    assert check_outputs(vectors, y).ok
    result = check_outputs(vectors, other)
    assert not result.ok
    assert result.outputs[0].error == pytest.approx(1 / 7)


def test_a_stated_tolerance_lets_integers_differ():
    y = np.array([10, 20, 30], np.uint8)
    vectors = golden.make(({"x": y},), ({"y": y},), ({"y": y},), {"y": 1.0})
    assert check_outputs(vectors, y + np.uint8(1)).ok
    assert not check_outputs(vectors, y + np.uint8(2)).ok


def test_strings_are_compared_as_text():
    y = np.array([["left"], ["right"]], object)
    vectors = one(y, y)
    assert check_outputs(vectors, y.astype(str)).ok
    assert not check_outputs(vectors, np.array([["left"], ["ahead"]], object)).ok


@pytest.mark.parametrize("dtype", ["float32", "int64", "object"])
def test_an_empty_output_must_stay_empty(dtype):
    none = np.zeros((0, 4), dtype)
    vectors = golden.from_bytes(one(none, none).to_bytes())
    assert check_outputs(vectors, none).ok
    result = check_outputs(vectors, np.zeros((1, 4), dtype))
    assert result.text == "'y' has shape (1, 4), not (0, 4), in sample 0"


def test_differences_beyond_float64_fail_instead_of_overflowing():
    y = np.array([1.5e308, 1.0])
    result = check_outputs(one(y, y), -y)
    assert not result.ok
    with pytest.raises(InputError, match="would let anything pass"):
        one(y, -y)


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({}, "'y' is missing in sample 0"),
        ({"y": np.zeros(3, "f8")}, "'y' is float64, not float32, in sample 0"),
        ({"y": np.zeros(3, "f4"), "z": np.zeros(1)}, "'z' was not recorded"),
    ],
)
def test_other_outputs_fail_and_say_why(outputs, text):
    y = np.zeros(3, np.float32)
    result = golden.check(one(y, y), lambda _: outputs)
    assert not result.ok
    assert result.text == text


@pytest.mark.parametrize(
    ("inputs", "original", "artifact", "says"),
    [
        ((), (), (), "0 inputs"),
        (({"x": np.zeros(1)},), (), ({"y": np.zeros(1)},), "0 original and 1 artifact"),
        (({"x": np.zeros(1)},), ({},), ({},), "without outputs"),
        (({"x": np.zeros(1)},), ({"y": np.zeros(2)},), ({"y": np.zeros(3)},), r"float64 \(3,\)"),
        (({"x": np.zeros(1)},), ({"y": np.zeros(2)},), ({"z": np.zeros(2)},), r"\['y'\]"),
        (({"x": np.zeros(1, "c8")},), ({"y": np.zeros(2)},), ({"y": np.zeros(2)},), "complex64"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused(inputs, original, artifact, says):
    with pytest.raises(InputError, match=says):
        golden.make(inputs, original, artifact)


def test_more_than_a_package_holds_is_refused_before_it_is_copied():
    big = np.broadcast_to(np.int8(1), (golden.MAX_BYTES // 2,))
    vectors = one(big, big)
    tracemalloc.start()
    with pytest.raises(InputError, match="take fewer samples"):
        vectors.to_bytes()
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_the_real_model_reproduces_its_vectors_and_with_other_inputs_does_not(real):
    vectors, path = real
    result = golden.check(vectors, lambda x: packages.run_model(path, (x,))[0])
    assert result.ok
    assert result.text.startswith("3 of 3 golden samples reproduced; 'y' is off by ")
    shuffled = golden.check(
        vectors, lambda x: packages.run_model(path, ({"x": x["x"][:, ::-1]},))[0]
    )
    assert not shuffled.ok


def test_a_real_network_passes_with_its_own_int8_and_not_with_wrong_preprocessing(digits, tmp_path):
    quantised = tmp_path / "int8.onnx"
    quantize_dynamic(digits, quantised, weight_type=QuantType.QUInt8)
    rng = np.random.default_rng(3)
    (name,) = (s.name for s in packages.adapter.open(digits, threads=1, options={}).inputs)
    pixels = tuple(rng.uniform(0, 1, (1, 1, 28, 28)).astype(np.float32) for _ in range(3))
    inputs = tuple({name: (p - 0.1307) / 0.3081} for p in pixels)
    original, artifact = packages.run_model(digits, inputs), packages.run_model(quantised, inputs)
    vectors = golden.from_bytes(golden.make(inputs, original, artifact).to_bytes())
    assert golden.check(vectors, lambda x: packages.run_model(quantised, (x,))[0]).ok
    assert golden.check(vectors, lambda x: packages.run_model(digits, (x,))[0]).ok
    raw = iter(pixels)
    unscaled = golden.check(
        vectors, lambda _: packages.run_model(quantised, ({name: next(raw)},))[0]
    )
    assert not unscaled.ok


def test_numpy_reads_the_file_without_pickles(real):
    vectors, _ = real
    with np.load(io.BytesIO(vectors.to_bytes()), allow_pickle=False) as arrays:
        assert same(arrays["inputs.0.0"], vectors.inputs[0]["x"])
        assert same(arrays["artifact.2.0"], vectors.artifact[2]["y"])


def test_every_changed_byte_is_noticed(real):
    raw = bytearray(real[0].to_bytes())
    for at in range(len(raw)):
        raw[at] ^= 1 << at % 8
        with pytest.raises(PackageError):
            golden.from_bytes(bytes(raw))
        raw[at] ^= 1 << at % 8
    assert golden.from_bytes(bytes(raw)).to_bytes() == raw


@settings(max_examples=300)
@given(raw=st.binary(max_size=200), cut=st.integers(0, 3000))
def test_other_bytes_raise_package_error_and_nothing_else(real, raw, cut):
    whole = real[0].to_bytes()
    for bad in (raw, whole[: min(cut, len(whole) - 1)], whole + raw + b"\0"):
        with pytest.raises(PackageError):
            golden.from_bytes(bad)


def hostile(member: bytes, method: int = zipfile.ZIP_STORED, name: str = "index.npy") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, member)
    return out.getvalue()


def header(text: str) -> bytes:
    padded = text + " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


@pytest.mark.parametrize(
    "raw",
    [
        hostile(b"\0" * 100_000_000, zipfile.ZIP_DEFLATED),
        hostile(header("{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999,), }")),
        hostile(header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + b"\x80\x04."),
        hostile(header("[" * 60_000)),
        hostile(npz._header(np.zeros(9, np.uint8)) + b"[" * 9),
        npz.dumps({"index": np.frombuffer(b"[" * 100_000, np.uint8)}),
        npz.dumps({"index": np.frombuffer(b'{"samples":1}', np.uint8)}),
    ],
    ids=["bomb", "huge", "pickle", "deep-header", "not-json", "deep-index", "no-fields"],
)
def test_hostile_files_are_refused_in_little_memory(raw):
    tracemalloc.start()
    with pytest.raises(PackageError):
        golden.from_bytes(raw)
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
