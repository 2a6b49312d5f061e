"""What MR-ALIGN computes, with no orchestration in it (arXiv 2510.24794).

Nothing under this package imports Prefect: every stage can be called from a notebook or a debugger.

The project's words, used with these meanings everywhere:

* **trace**: one sampled completion of a reasoning model, its thinking and its answer.
* **segment**: a piece of the thinking between blank lines; the unit that is labelled and weighted.
* **label**: what a segment does, one of the meta-reasoning labels of the taxonomy (15 in the paper).
* **thinking_mode**: ``"on"`` (the model thinks before it answers) or ``"off"``.
* **polarity**: ``"positive"`` where thinking makes the answers right, ``"negative"`` where it makes them wrong.
* **weight**: the factor on a token's log-ratio in the training objective (Eq. 9, 10).
* **hit gap**: the share of answers where exactly one of thinking and answer names the right fact (Mis).
"""

__version__ = "0.1.0"
