"""Many runs as one experiment: seeds and sweeps, each run in a process of its own."""
