import sys

import pytest

from flows.commands.cli import main
from tests.prefect_server import served

__all__ = ["mralign", "served"]


@pytest.fixture
def mralign(monkeypatch, capsys):
    """Run the command in this process; gives its exit code and what it wrote to both streams."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mralign", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run
