"""The agent as a process: alone, watched, told about."""
