"""Retraining: whether a new model takes the champion's place, and what may not."""
