"""Answering requests: models loaded, scheduled, swapped."""
