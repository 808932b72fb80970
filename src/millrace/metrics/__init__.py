"""Figures of a run: what they mean, and where they go."""
