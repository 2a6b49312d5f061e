from tests.prefect_server import served

__all__ = ["served"]
