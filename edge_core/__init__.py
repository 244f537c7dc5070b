"""What host and device must agree on: errors, tensors, profiles, packages, runtimes.

Runs on the device with the base install only; imports nothing else of this project.
"""

__version__ = "0.1.0"
