"""The edge command: one module a group, and what it prints."""
