"""The HTTP connections of serve.py: uvicorn's, but that slow and cut-off requests are answered, in JSON.

uvicorn waits for the rest of a request's header for ever, and closes a connection whose client stops sending, without
an answer.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from captioning.signals import Interrupted, handling

HEADER_SECONDS = 10.0  # until the header of a request must be complete
PHRASES = {400: b"Bad Request", 408: b"Request Timeout"}


class Connection(H11Protocol):
    """A connection over which requests come."""

    header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._await_header()

    def connection_lost(self, exc) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._idle:
            self._stop_waiting()
        elif self.header_timer is None and self.conn.trailing_data[0]:
            self._await_header()

    def eof_received(self) -> bool | None:
        """The client sends no more: True keeps the connection open for an answer."""
        if self._idle:
            if self.conn.trailing_data[0]:
                self.send_400_response("the request ended before it was complete")
            return None
        if self.cycle.more_body:
            self.cycle.scope["state"]["cut_off"] = True  # uploads.Body refuses it
            self.cycle.more_body = False
        self.cycle.keep_alive = False
        self.cycle.message_event.set()
        return True

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request, and close."""
        self._refuse(400, msg)

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _await_header(self) -> None:
        self.header_timer = self.loop.call_later(HEADER_SECONDS, self._header_is_late)

    def _stop_waiting(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    def _header_is_late(self) -> None:
        self.header_timer = None
        if self._idle and not self.transport.is_closing():
            self._refuse(408, f"the header of the request was not complete after {HEADER_SECONDS:g} seconds")

    def _refuse(self, status: int, reason: str) -> None:
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        body = json.dumps({"error": reason}).encode()
        headers.append((b"content-length", str(len(body)).encode()))
        response = h11.Response(status_code=status, headers=headers, reason=PHRASES[status])
        with contextlib.suppress(h11.LocalProtocolError):  # an answer has begun
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which answers what it has begun and ends when a signal comes, as the other scripts do.

    begun: called when it listens. `run` raises Interrupted after a signal.
    """

    def __init__(self, config: uvicorn.Config, begun=lambda: None):
        super().__init__(config)
        self.begun = begun
        self.came: list[int] = []

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets=sockets)
        self.begun()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with handling(self.note):
            yield
        if self.came:
            raise Interrupted(self.came[0])

    def note(self, number: int, frame) -> None:
        """A signal came: the first ends the server when it has answered, a second Ctrl-C at once."""
        self.force_exit = bool(self.came) and number == signal.SIGINT
        self.should_exit = True
        self.came.append(number)
