"""Learning: targets, minibatches, epochs of clipped gradient descent. Owns policy and optimiser."""
