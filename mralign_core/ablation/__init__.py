"""Ablations: arms on the same data, compared in pairs over worlds or seeds.

``arms`` names them, ``grid`` gives each its config, ``comparison`` computes differences, ``findings`` and ``figure``
show them. Nothing is imported here: the config reads ``arms``, and the others read the config.
"""
