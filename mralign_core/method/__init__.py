"""The paper (arXiv 2510.24794) as pure functions: no I/O, no clock, no environment, no global random state.

One file a step, in the order of the method; import from the file that is meant:

* ``traces``, ``matching``, ``selection``: a completion's parts, whether they are right, which traces to keep
  (§3.1.1).
* ``taxonomy``, ``consolidation``: what a segment can do, and what two annotators make of it (§3.1.2, App. B).
* ``transitions``: EM estimate of the transition matrices (§3.2.2, App. E).
* ``rewards``, ``token_weights``: transition ratios as weights, and the tokens that carry them (§3.2.3).
* ``objective``: the weighted KTO loss (Eq. 2–4, 9, 11, 12); the only file that needs torch.
"""
