"""One file per command, named like it; each has `run(words) -> exit code`."""
