"""The paper (arXiv 2510.24794) as pure functions: no I/O, no clock, no environment, no global random state.

What stands here is what runs; slower forms that say the same by loops are oracles in ``tests/oracles.py``. One file a
step, in the order of the method; import from the file that is meant:

* ``traces``, ``matching``, ``selection``: a completion's parts, whether they are right, which traces to keep and which
  of them are positive (§3.1.1).
* ``taxonomy``, ``consolidation``, ``agreement``: what a segment can do, what two annotators make of it, and how far
  they agree (§3.1.2, App. B).
* ``set_pairs``, ``transitions``: transitions between label sets, counted, and the EM estimate of the transition
  matrices (§3.2.2, App. E).
* ``hidden_chain``, an addition: the same matrices where true labels are hidden and annotators are noisy channels.
* ``segment_weights``, ``token_weights``: transition ratios, clipped, as weights, and the tokens that carry them
  (§3.2.3).
* ``distances``: how far two matrices, or two sets of weights, are apart (Eq. 13).
* ``objective``: the weighted KTO loss (Eq. 2–4, 9, 11, 12).
* ``set_chains``, ``stationarity``, ``chain_order``, ``placebos``: additions, which test what the paper assumes.
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
