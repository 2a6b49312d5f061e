"""Versions: trained adapters that were evaluated, and the aliases, such as ``champion``, that name one of them.

It exports nothing: what a version holds (:mod:`mralign_core.versions.record`) is in its key, and how aliases move must
be in none.
"""
