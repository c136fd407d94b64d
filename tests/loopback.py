"""An HTTP server on loopback in a thread of its own, which `servers` and `fake_hub` answer with."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_POLL_S = 0.02  # how long `close` may wait


class LoopbackServer(ThreadingHTTPServer):
    """Serves from the moment that it is made.

    Attributes:
        owner: what the handler asks for its answers.
        url: http://127.0.0.1:PORT.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, owner: object, handler: type[BaseHTTPRequestHandler], *, port: int = 0
    ) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.owner: Any = owner
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(_POLL_S,), daemon=True).start()

    def close(self) -> None:
        """Refuses connections from now on."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that ends its connection is no news."""
