"""The edge-agent command: one module a group, and what it prints."""
