"""A real HTTP server around an ASGI application, in a thread; and requests to an application without one."""

import asyncio
import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import uvicorn


def in_a_loop_of_its_own(ask):
    """What a coroutine function returns; in a thread, since Playwright's loop may run in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(ask())).result()


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
