import pytest
from chat_server import ChatServer


@pytest.fixture
def server(monkeypatch):
    for name in ("OPENAI_API_KEY", "DEEPSEEK_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    server = ChatServer()
    yield server
    server.close()
