"""Measuring variants on held-out questions: answers, metrics, paired intervals."""
