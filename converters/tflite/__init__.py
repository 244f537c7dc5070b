"""The TFLite target: an importer of our own, every precision, files that old runtimes refuse."""
