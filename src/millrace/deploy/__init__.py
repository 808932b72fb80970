"""Trained policies at work: load, evaluate, play."""
