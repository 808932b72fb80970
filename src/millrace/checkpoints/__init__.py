"""Checkpoints are data: safetensors and JSON, never pickle; written aside, synced, renamed."""
