"""Ablations: arms compared in pairs over worlds or seeds.

``grid`` gives each arm its config, ``paired`` computes the differences.
"""
