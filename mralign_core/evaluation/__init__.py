"""Measuring variants on held-out questions."""
