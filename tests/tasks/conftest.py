"""Runs, one after another, in one process."""

import contextlib

import pytest

from tasks.engine.session import session


@pytest.fixture
def next_run():
    """Ends the run that this process is in and starts another, which knows nothing of the clients of the first."""
    with contextlib.ExitStack() as run:
        run.enter_context(session())

        def start():
            run.close()
            run.enter_context(session())

        yield start
