"""What `edge doctor` says about runtimes that are here and that are not."""

import msgspec

from edge_core.errors import MissingExtra
from edge_core.runtimes import onnxruntime, tflite
from edge_sdk import doctor


class Absent:
    """A runtime that is not installed."""

    def __init__(self, name, like):
        self.SPEC = msgspec.structs.replace(like.SPEC, name=name, module=name)

    def version(self):
        raise MissingExtra(self.SPEC.module, self.SPEC.extra)

    def open(self, path, *, threads, options):
        raise NotImplementedError


def states(*adapters):
    checks = doctor.check_runtimes({adapter.SPEC.name: adapter for adapter in adapters})
    return {check.what.removeprefix("runtime "): check.state for check in checks}


def test_a_runtime_whose_files_nothing_here_loads_is_missing():
    assert states(onnxruntime, Absent("lite", tflite.LITERT)) == {
        "onnxruntime": "ok",
        "lite": "missing",
    }


def test_one_runtime_for_a_kind_of_file_is_enough():
    assert states(Absent("older", onnxruntime), onnxruntime) == {
        "older": "ok",
        "onnxruntime": "ok",
    }


def test_a_missing_runtime_says_how_to_install_it():
    (check,) = doctor.check_runtimes({"lite": Absent("lite", tflite.LITERT)})
    assert "pip install 'edge-deploy[" in check.hint
