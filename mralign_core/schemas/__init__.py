"""The tables that cross a stage boundary, a module each, so that a change in one reaches the keys of its users only."""
