"""Comparing annotation sets: what both labelled, how far they agree, what that does to P and w (App. B.3–B.5)."""
