"""Runtime adapters, and the child processes that models run in."""
