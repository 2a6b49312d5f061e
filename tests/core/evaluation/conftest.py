import pytest
from sample_run import full_inputs


@pytest.fixture(scope="session")
def inputs():
    """Report inputs with every section filled."""
    return full_inputs()
