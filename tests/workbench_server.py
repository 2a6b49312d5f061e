"""The workbench behind its door, in a thread of this process: what a browser opens in tests."""

import contextlib

from flows.commands.door import Door
from flows.commands.secret import token_of
from flows.commands.view import leads_to
from mralign_core.reporting.store_addresses import view_address
from tests.asgi_server import serving

SECRET, START = b"s" * 32, "0" * 32


class Workbench:
    """Where it is.

    Args:
        port: where it listens.
        storage: the store that it shows.
        run: what its addresses call the run.
    """

    def __init__(self, port, storage, run):
        self.own = f"127.0.0.1:{port}"
        self.site = f"http://{self.own}"
        self.start = view_address(storage, run)
        self.link = f"{self.site}{self.start}#{token_of(SECRET, START)}"

    def at(self, view, query=""):
        """The address of a view."""
        path, _, about = self.start.partition("?")
        return f"{self.site}{path}{view}?{about}{'&' if query else ''}{query}"


@contextlib.contextmanager
def serving_workbench(storage, run):
    """Serve it; gives a :class:`Workbench`."""
    start = view_address(storage, run)
    with serving(lambda port: Door(leads_to(start), port, SECRET, START)) as port:
        yield Workbench(port, storage, run)
