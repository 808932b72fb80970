"""Learning: targets, minibatches, epochs of clipped gradient descent. Owns policy and optimiser."""

from millrace import system

# Here, because OpenMP reads it once, when torch is loaded, and learners are the first to load it.
system.yield_while_waiting()
