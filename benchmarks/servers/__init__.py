"""Other people's model servers, each with an ONNX file in the way its documentation shows.

The modules run in their server's own environment and import nothing of ours.
"""
