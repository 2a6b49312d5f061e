import json
from urllib.parse import urlencode

import httpx
import pytest

from mralign_core.reporting.server_paths import VIEW_API_PREFIX
from mralign_core.storage import ArtifactStore
from mralign_core.workbench.app import make_app
from mralign_core.workbench.database import shared_database
from mralign_core.workbench.tables import find_run
from tests.asgi_server import in_a_loop_of_its_own
from tests.simulated_run import NAME, simulated_store


@pytest.fixture(scope="package")
def storage(tmp_path_factory):
    """A store with a simulated run of 24 traces of four segments; tests begin rounds of their own in it."""
    return simulated_store(tmp_path_factory.mktemp("rating"), 24)


@pytest.fixture(scope="package")
def store(storage):
    return ArtifactStore(storage)


@pytest.fixture(scope="package")
def run(store):
    return find_run(store, NAME)


@pytest.fixture(scope="package")
def database():
    return shared_database()


class Page:
    """What a page of a rater asks for and sends."""

    def __init__(self, storage):
        self.app, self.about = make_app(), {"store": storage.root, "run": NAME}

    def request(self, method, path, body=None, headers=None, **query):
        async def ask():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                address = f"{VIEW_API_PREFIX}rate/{path}?{urlencode({**self.about, **query})}"
                return await client.request(method, address, content=body, headers=headers)

        return in_a_loop_of_its_own(ask)

    def get(self, path, **query):
        return self.request("GET", path, **query)

    def post(self, path, content, **headers):
        return self.request("POST", path, json.dumps(content), {"content-type": "application/json", **headers})

    def begin(self, kind="labels", rater="nobody", **choice):
        reply = self.post("begin", {"kind": kind, "choice": choice, "rater": rater})
        assert reply.status_code == 200, reply.text
        return reply.json()["round"]

    def rate(self, name, rater, n, item, said, **more):
        rating = {"n": n, "item": item, "state": "rated", "said": said, **more}
        return self.post("rating", {"round": name, "rater": rater, "rating": rating})

    def rate_all(self, name, rater, saying):
        """Rate every item as ``saying(number, item)`` says; gives the items."""
        items = self.get("round", round=name, rater=rater).json()["items"]
        for number, item in enumerate(items):
            reply = self.rate(name, rater, number + 1, item["item"], saying(number, item))
            assert reply.status_code == 200, reply.text
        return items


@pytest.fixture(scope="package")
def page(storage):
    return Page(storage)
