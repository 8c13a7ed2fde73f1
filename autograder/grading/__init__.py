"""One submission: read, repaired, run in the sandbox, scored outside."""
