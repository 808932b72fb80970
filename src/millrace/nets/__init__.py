"""Networks: an encoder by observation space, a head by action space, and the actors that collectors run."""
