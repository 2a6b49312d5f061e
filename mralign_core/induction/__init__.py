"""Induction of a label set from traces: open labels, embedded, clustered and named (App. B.1)."""

from mralign_core.induction.inducing import OPEN_LABEL_COLUMNS, Induction, induce_label_set
from mralign_core.induction.naming import InducedLabel

__all__ = ["OPEN_LABEL_COLUMNS", "InducedLabel", "Induction", "induce_label_set"]
