"""Processes: those of one run, those that train together, and how all of them end."""
