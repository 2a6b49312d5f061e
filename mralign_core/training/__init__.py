"""LoRA training with the weighted KTO objective, and its baselines (§3.2.1, Table 13).

``reference`` computes what all trainings share, ``fit`` trains an adapter. Nothing is imported here: the cache key of
the reference would hang on the trainer.
"""
