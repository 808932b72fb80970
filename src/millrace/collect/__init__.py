"""One collector, and the places it runs: in this process, in worker processes."""
