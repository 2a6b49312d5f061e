"""The pocket world: a tiny factual world, and a tiny reasoning model that is taught it, built from one seed.

An ordinary Qwen3 architecture and tokenizer directory on disk, so that nothing downstream knows the
difference. It is a testbed in which the hit gap can be seen and changed within minutes on a CPU; it is no
evidence about large models.
"""
