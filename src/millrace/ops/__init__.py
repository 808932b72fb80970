"""The papers: pure functions on arrays and tensors, each with its shapes and its source."""
