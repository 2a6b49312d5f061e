"""Induction of a label set from traces: open labels, embedded, clustered and named (App. B.1)."""
