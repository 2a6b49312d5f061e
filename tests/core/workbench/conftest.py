from urllib.parse import urlencode

import httpx
import pytest

from mralign_core.reporting.server_paths import VIEW_API_PREFIX
from mralign_core.storage import ArtifactStore
from mralign_core.workbench import analyses
from mralign_core.workbench.app import make_app
from mralign_core.workbench.kept_tables import KeptTables
from mralign_core.workbench.tables import find_run
from tests.asgi_server import in_a_loop_of_its_own
from tests.simulated_run import NAME, simulated_store


@pytest.fixture(scope="session", autouse=True)
def kept_analyses(tmp_path_factory):
    """What is worked out is kept in a folder of the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyses, "_TABLES", KeptTables(tmp_path_factory.mktemp("analyses")))
        yield


@pytest.fixture(scope="session")
def storage(tmp_path_factory):
    """A store with a simulated run of 40 traces; don't write to it."""
    return simulated_store(tmp_path_factory.mktemp("workbench"), 40)


@pytest.fixture(scope="session")
def store(storage):
    return ArtifactStore(storage)


@pytest.fixture(scope="session")
def run(store):
    return find_run(store, NAME)


@pytest.fixture(scope="session")
def table(store, run):
    """A table of the simulated run."""
    return lambda name, file: store.read_table(run.artifacts[name], file)


@pytest.fixture(scope="session")
def get(storage):
    """Ask the application for a path, on the simulated run unless the query says another."""
    app = make_app()

    def get(path, **query):
        asked = {"store": storage.root, "run": NAME, **query}
        address = path if path.startswith("/") else f"{VIEW_API_PREFIX}{path}"

        async def ask():
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.get(f"{address}?{urlencode(asked)}")

        return in_a_loop_of_its_own(ask)

    return get


@pytest.fixture(scope="session")
def found(get):
    """What a list has: every row of all pages."""

    def found(path, **query):
        reply = get(path, **query)
        assert reply.status_code == 200, reply.text
        page = reply.json()
        rows = page["rows"]
        for number in range(2, page["num_pages"] + 1):
            rows += get(path, **query, page=number).json()["rows"]
        assert len(rows) == page["total"]
        return rows

    return found
