"""Real models and data for the demo, the tests and the benchmarks; not shipped."""
