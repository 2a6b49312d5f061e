"""Judges of held-out answers: whether one is truthful and informative, or correct, incorrect or not attempted, or
which of its claims evidence supports.

They are asked by the client that annotators are asked by (:mod:`mralign_core.llm`): a reply is kept before it is read,
and nothing is asked twice.
"""
