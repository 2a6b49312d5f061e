"""A real HTTP server around an ASGI application, in a thread."""

import contextlib
import socket
import threading
import time

import uvicorn


@contextlib.contextmanager
def serving(make_app):
    """Serve ``make_app(port)``; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(make_app(port), http="h11", lifespan="off", log_level="error", proxy_headers=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(timeout=30)
