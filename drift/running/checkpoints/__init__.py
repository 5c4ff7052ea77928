"""Checkpoints: where they come from, how they are fetched, verified and loaded."""
