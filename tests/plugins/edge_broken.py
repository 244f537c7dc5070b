"""Converters that do what goes wrong in the field, through the door that strangers use.

All but one convert float to float, so that nothing but the mistake is in the outcome.
"""

import os
import subprocess
import sys
from dataclasses import dataclass

import msgspec

from converters.spec import Conversion, Job, Spec


@dataclass(frozen=True)
class Broken:
    SPEC: Spec
    change: object  # ModelProto -> None

    def convert(self, job: Job) -> Conversion:
        import onnx

        model = onnx.load(job.model)
        self.change(model)
        path = job.out_dir / "model.onnx"
        onnx.save(model, path)
        return Conversion(path=path)


def spec(name):
    return Spec(
        sources=("onnx",),
        name=name, title=name, target="onnx", runtimes=("onnxruntime",), precision="fp32",
        scheme="float", suffix=".onnx", extra="onnx",
    )  # fmt: skip


@dataclass(frozen=True)
class PerTensor:
    """onnxruntime's quantize_static as it comes: one scale for all channels of a weight."""

    SPEC: Spec

    def convert(self, job: Job) -> Conversion:
        from onnxruntime.quantization import quantize_static

        class Reader:
            samples = iter(job.samples)

            def get_next(self):
                return next(self.samples, None)

        path = job.out_dir / "model.onnx"
        quantize_static(job.model, path, Reader())
        return Conversion(path=path)


def find_first_convolution(model):
    import onnx

    node = next(node for node in model.graph.node if node.op_type == "Conv")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    return weight, onnx.numpy_helper.to_array(weight)


def swap_channels(model):
    """BGR for RGB: the first convolution reads its input channels in the opposite order."""
    import onnx

    weight, values = find_first_convolution(model)
    weight.CopyFrom(onnx.numpy_helper.from_array(values[:, ::-1].copy(), weight.name))


def forget_scaling(model):
    """Pixels 0..255 where the model wants (x - 127) / 128: every input is 128 times too large."""
    import onnx

    weight, values = find_first_convolution(model)
    weight.CopyFrom(onnx.numpy_helper.from_array(values * 128, weight.name))


def raise_versions(model):
    """What onnx writes by default: newer than any runtime on the device loads."""
    model.ir_version = 13
    model.opset_import[0].version = 26


def crash(model):
    os.abort()


def recurse(model):
    """A graph that no runtime can run: a node reads what it writes."""
    model.graph.node[0].input[0] = model.graph.node[0].output[0]


def leave_a_child_behind(model):
    """Exits without an answer while a program of its own goes on."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", os.environ["MARK"]])
    print("no answer")
    sys.stdout.flush()
    os._exit(3)


def hang(model):
    subprocess.run([sys.executable, "-c", "import time; time.sleep(300)", os.environ["MARK"]])


PER_TENSOR = PerTensor(
    msgspec.structs.replace(
        spec("per-tensor-weights"), precision="int8", scheme="static", needs_samples=True
    )
)
SWAPPED = Broken(spec("swapped-channels"), swap_channels)
UNSCALED = Broken(spec("wrong-preprocessing"), forget_scaling)
TOO_NEW = Broken(spec("too-new"), raise_versions)
CRASHING = Broken(spec("crashing"), crash)
CRASHING_FILE = Broken(spec("crashing-file"), recurse)
LEAVING = Broken(spec("leaving"), leave_a_child_behind)
HANGING = Broken(spec("hanging"), hang)
