"""From tables to matrices and weights: the bridge between the annotation tables and :mod:`mralign_core.method`.

P⁺, P⁻ and P are always estimated from the same annotated traces, and with the same estimator: from transitions between
consolidated label sets, or (``hidden_labels``) from what each annotator said.

Two ways in, one computation: :func:`labelled_traces` gives traces as Python lists, for whoever wants to look at them;
:func:`read_trace_batches` streams the Parquet files as columns, for millions of traces. Both become
:class:`TraceBatch`, from which everything is counted and weighed.
"""
