"""Versions: trained adapters that were evaluated, and the aliases, such as ``champion``, that name one of them.

It exports nothing: what a version holds (:mod:`mralign_core.versions.record`) is in its key, and a change in how aliases
move must change no key.
"""
