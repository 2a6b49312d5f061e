"""Question sets: known ones and a user's own, from files or the hub, to rows of the table contract.

A row that is no question is an error that says what to fix; what is aligned on is never what is evaluated on.
"""
