"""The functions that lower ONNX ops, by family; table.py says which lowers which."""
