"""How any artifact is made: found in the store or built, here or on a pool. It knows no stage but their order."""

STAGES = ("prepare", "generate", "annotate", "estimate", "reward", "train", "evaluate")
"""Those of the pipeline, in order; other stages are analyses of what it made."""
