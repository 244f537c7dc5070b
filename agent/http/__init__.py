"""The Open Inference Protocol v2 over HTTP: wire -> oip -> app -> server. Nothing else listens."""
