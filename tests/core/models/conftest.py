"""What is trained here is what :mod:`tests.core.training` trains."""

from tests.core.training.conftest import model_dir, section

__all__ = ["model_dir", "section"]
