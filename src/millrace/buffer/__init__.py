"""Rollouts between collecting and learning: places for them, the queue of those that are ready, parts of a replay."""
