from tests.pocket_store import pocket_store, store_root
from tests.prefect_api import prefect_api, prefect_url

__all__ = ["pocket_store", "prefect_api", "prefect_url", "store_root"]
