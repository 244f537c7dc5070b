"""SQLite files that are written in groups, bounded in bytes, and never in the way."""
