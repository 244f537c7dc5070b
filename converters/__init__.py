"""Converters by name: ours are listed here, others come by the entry-point group."""
