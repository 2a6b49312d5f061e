"""Servers that answer for models and adapters of this run: named, told, checked, and started where they must be."""
