"""What this machine is, as its own files state it."""
