"""Annotation of traces by two annotators and an adjudicator, language models or offline (§3.1.2, App. B)."""
