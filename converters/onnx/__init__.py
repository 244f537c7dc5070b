"""ONNX files: read, prepared, and converted to every precision that ONNX Runtime runs."""
