"""Rollouts between collecting and learning: a slab of fixed slots, and the queue of those that are ready."""
