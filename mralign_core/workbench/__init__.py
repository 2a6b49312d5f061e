"""The workbench: look into the thinking of a run, and judge it, in a browser.

``tables`` finds the files of a run, ``database`` asks them (DuckDB, over the Parquet files as they lie), ``filters``
says what an address asks for, ``lists``, ``cases`` and ``overview`` answer it, and ``app`` is the HTTP around them. Its
pages are in ``static/``.
"""
