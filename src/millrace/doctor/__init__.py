"""What is wrong, and what to do: the machine, the way a policy is loaded, the figures of a run."""
