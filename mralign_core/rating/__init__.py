"""Rating by people, in a browser: rounds of what is to be rated, every rating, and what comes of them.

``records`` keeps rounds and ratings in a store, ``choosing`` says what is rated, ``sheets_of`` makes of a rater's
ratings the sheet that a spreadsheet would have come back with, ``results`` compares raters with each other and with the
pipeline, and ``human_sets`` makes an annotator of a rater. :mod:`mralign_core.workbench.rating_pages` is the HTTP
around them.
"""
