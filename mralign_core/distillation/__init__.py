"""Distilled annotators: they learn from labels that were paid for, and label the rest."""
