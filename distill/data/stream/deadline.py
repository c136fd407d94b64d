"""Deadlines for HTTP: a timeout of the standard library starts again with each byte, a deadline
does not.
"""

import functools
import http.client
import io
import socket
import ssl
import time
import urllib.request
from typing import Any, cast

from distill.data.stream.byte_stream import TransientError


class Deadline:
    """The time limit for the next step of a request: all headers including redirects, or one piece
    of the body.

    Args:
        timeout_s: seconds without a byte.
        step_s: seconds of one step.
    """

    def __init__(self, timeout_s: float, step_s: float) -> None:
        self.timeout_s, self._step_s = timeout_s, step_s
        self.renew()

    def renew(self) -> None:
        """Start the next step."""
        self._until = time.monotonic() + self._step_s

    def left_s(self) -> float:
        """How long to wait for the next byte.

        Raises:
            TransientError: the time is over.
        """
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TransientError(
                "the answer's headers, or the next part of it, did not come within"
                f" {self._step_s:g} s"
            )
        return min(self.timeout_s, left_s)


class _Raw(io.RawIOBase):
    """The raw reader of a connection, under a deadline."""

    def __init__(self, file: io.BufferedReader, sock: socket.socket, deadline: Deadline) -> None:
        self._file, self._sock, self._deadline = file, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._deadline.left_s())
        try:
            return cast(io.RawIOBase, self._file.raw).readinto(buffer)
        except TimeoutError:
            self._deadline.left_s()
            raise

    def close(self) -> None:
        self._file.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(
        self, sock: socket.socket, *arguments: Any, deadline: Deadline, **options: Any
    ) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Raw(self.fp, sock, deadline))


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._response = functools.partial(_Response, deadline=deadline)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(host: str, **options: Any) -> http.client.HTTPConnection:
            made = http.client.HTTPConnection(host, **options)
            made.response_class = self._response  # type: ignore[assignment]
            return made

        return self.do_open(connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._response, self._tls = functools.partial(_Response, deadline=deadline), context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(host: str, **options: Any) -> http.client.HTTPSConnection:
            made = http.client.HTTPSConnection(host, context=self._tls, **options)
            made.response_class = self._response  # type: ignore[assignment]
            return made

        return self.do_open(connection, req)


def http_handlers(
    deadline: Deadline, context: ssl.SSLContext
) -> tuple[urllib.request.BaseHandler, ...]:
    """Handlers that let urllib open http:// and https:// under the deadline."""
    return _Http(deadline), _Https(deadline, context)
