"""Training with RLlib: environments offered to it, settings translated, a run of Millrace's around it."""
