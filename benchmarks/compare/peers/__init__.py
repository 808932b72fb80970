"""One file per peer. One with a file of its name in `../requirements` runs in an environment made of it."""
