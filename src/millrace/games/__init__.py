"""Built-in games: rules only, compiled by Numba, many slots at a time."""
