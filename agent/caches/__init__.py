"""Answers that need not be computed again, in SQLite files that are bounded in bytes."""
