"""The same questions and answers over TCP, for workers that share no memory with whoever acts for them.

Both ends keep desks of their own (`exchange.py`); what lies on one is sent as it lies there, so that nothing is packed
or parsed. A question is the eight words of a desk and its memory up to the answer, an answer the words and the rest.
Whoever acts keeps nothing: a worker asks its successor again what the connection was lost with.
"""

from __future__ import annotations

import contextlib
import hmac
import selectors
import socket
import time
from dataclasses import dataclass

import numpy as np

from millrace.collect.exchange import ANSWERED, ASKED, DESK_WORDS, ROWS, CentralActor, Exchange, ExchangeLayout
from millrace.system import SharedBlock
from millrace.types import Array

TOKEN_BYTES = 32
WORDS_BYTES = 8 * DESK_WORDS
CONNECT_TIMEOUT_S = 5.0
SEND_TIMEOUT_S = 10.0
RETRY_S = 0.25
BACKLOG = 1024


@dataclass(frozen=True)
class Address:
    """Where questions go.

    Attributes:
        token: [32] bytes that a worker shows first: nobody else is listened to.
    """

    host: str
    port: int
    token: bytes


class WireExchange:
    """A worker's end.

    Attributes:
        address: where questions go from the next attempt on; None until that is known.
    """

    def __init__(self, layout: ExchangeLayout, worker: int) -> None:
        self.address: Address | None = None
        self._lines: list[Line] = []
        one = ExchangeLayout(layout.spec, layout.state_size, layout.num_slots, 1, layout.num_lanes)
        self._desks = Exchange(one, SharedBlock(one.nbytes), _Silence(), ())
        self._first_desk = worker * layout.num_lanes

    def actor(self, worker: int, lane: int, timeout_s: float) -> CentralActor:
        """The policy as one lane of the worker sees it."""
        line = Line(self, self._desks, lane, self._first_desk + lane)
        self._lines.append(line)
        return CentralActor(self._desks.desk(lane), line, line, timeout_s)

    def is_waiting(self) -> bool:
        """Whether there is a question that is not answered."""
        return self._desks.is_waiting(0)

    def close(self) -> None:
        for line in self._lines:
            line.close()
        self._desks.close()


class Line:
    """The connection of one lane: ringing it sends the question, being rung by it is the answer."""

    def __init__(self, exchange: WireExchange, desks: Exchange, lane: int, desk: int) -> None:
        self._exchange, self._desk = exchange, desk
        self._words, memory = desks.words[lane], desks.memory_of(lane)
        split = desks.layout.question_nbytes
        self._question, self._answer = memory[:split], memory[split:]
        self._incoming, self._got = memoryview(bytearray(WORDS_BYTES + self._answer.nbytes)), 0
        self._socket: socket.socket | None = None
        self._retry_at_s = 0.0

    def release(self) -> None:
        """Send what was asked; if that fails, the wait for the answer tries again."""
        with contextlib.suppress(OSError):
            self._connected()
            self._send()

    def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool:
        """Wait for the answer; whether all of it is there, and then it lies on the desk."""
        try:
            if self._socket is None:
                self._pause(timeout or 0.0)
                self._connected()
                self._send()
            return self._receive(timeout)
        except TimeoutError:
            return False
        except OSError:
            self.close()
            return False

    def _receive(self, timeout_s: float | None) -> bool:
        assert self._socket is not None
        self._socket.settimeout(timeout_s)
        count = self._socket.recv_into(self._incoming[self._got :])
        if not count:
            raise ConnectionResetError("whoever acts is gone")
        self._got += count
        if self._got < len(self._incoming):
            return False
        self._got = 0
        self._answer[:] = self._incoming[WORDS_BYTES:]
        self._words[:] = np.frombuffer(self._incoming[:WORDS_BYTES], np.int64)
        return True

    def _pause(self, most_s: float) -> None:
        time.sleep(max(0.0, min(self._retry_at_s - time.monotonic(), most_s)))

    def _connected(self) -> None:
        """Have a connection.

        Raises:
            OSError: nobody is there.
        """
        if self._socket is not None:
            return
        self._retry_at_s = time.monotonic() + RETRY_S
        address = self._exchange.address
        if address is None:
            raise ConnectionError("nobody acts yet")
        connection = socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_S)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(address.token + self._desk.to_bytes(8, "little"))
        except OSError:
            connection.close()
            raise
        self._socket = connection

    def _send(self) -> None:
        assert self._socket is not None
        self._socket.settimeout(SEND_TIMEOUT_S)
        try:
            self._socket.sendall(b"".join((self._words.tobytes(), self._question)))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket, self._got = None, 0


class Switchboard:
    """The other end: lays what comes in on the desks of `exchange`, and sends what is answered there.

    One thread does everything, that of whoever answers: it looks for questions by asking its bell.

    Args:
        busy: [workers] int64, 1 for those that are connected.
    """

    def __init__(self, layout: ExchangeLayout, host: str, port: int, token: bytes, busy: Array) -> None:
        self._token, self._busy = token, busy
        self._listener = socket.create_server((host, port), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.address = Address(host, self._listener.getsockname()[1], token)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        replies = [_Reply(self, worker) for worker in range(layout.num_workers)]
        self.exchange = Exchange(layout, SharedBlock(layout.nbytes), self, replies)
        self._callers: dict[int, _Caller] = {}  # by desk

    def release(self) -> None:
        """Nobody rings here but the network."""

    def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool:
        """Take in what has come; whether anything had while this waited for it.

        Without waiting the answer is no: all that was there lies on its desk by now, and need not be asked for again.
        """
        events = self._selector.select(timeout if block else 0)
        for key, _ in events:
            if key.data is None:
                self._accept()
            elif not key.data.read():
                self._drop(key.data)
        return block and bool(events)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ, _Caller(connection, self))

    def greet(self, caller: _Caller, hello: bytes) -> bool:
        """Give a caller its desk if it knows the token; a line that it had before is closed."""
        desk = int.from_bytes(hello[TOKEN_BYTES:], "little")
        if not hmac.compare_digest(hello[:TOKEN_BYTES], self._token) or desk >= self.exchange.layout.num_desks:
            return False
        if desk in self._callers:
            self._drop(self._callers[desk])
        self._callers[desk] = caller
        self.exchange.words[desk] = 0  # what somebody else had asked from here
        self._busy[desk // self.exchange.layout.num_lanes] = 1
        caller.sit_down(self.exchange, desk)
        return True

    def _drop(self, caller: _Caller) -> None:
        self._selector.unregister(caller.connection)
        caller.connection.close()
        desk, lanes = caller.desk, self.exchange.layout.num_lanes
        if self._callers.get(desk) is caller:
            del self._callers[desk]
            self.exchange.words[desk] = 0  # nobody waits for it any more
            worker = desk // lanes
            self._busy[worker] = any(desk in self._callers for desk in range(worker * lanes, (worker + 1) * lanes))

    def reply(self, worker: int) -> None:
        """Send a worker the answers that it has not got."""
        lanes = self.exchange.layout.num_lanes
        for desk in range(worker * lanes, (worker + 1) * lanes):
            caller = self._callers.get(desk)
            if caller is not None and not caller.answer():
                self._drop(caller)

    def close(self) -> None:
        for caller in list(self._callers.values()):
            self._drop(caller)
        self._listener.close()
        self._selector.close()


class _Caller:
    """One connection, and how much of what it is sending has come."""

    def __init__(self, connection: socket.socket, switchboard: Switchboard) -> None:
        self.connection, self._switchboard = connection, switchboard
        self.desk = -1
        self._incoming, self._got = memoryview(bytearray(TOKEN_BYTES + 8)), 0
        self._replied = 0

    def sit_down(self, exchange: Exchange, desk: int) -> None:
        self.desk, self._words, self._most_rows = desk, exchange.words[desk], exchange.layout.num_slots
        memory, split = exchange.memory_of(desk), exchange.layout.question_nbytes
        self._question, self._answer = memory[:split], memory[split:]
        self._incoming = memoryview(bytearray(WORDS_BYTES + split))

    def read(self) -> bool:
        """Take in what is there; False if the other side is gone, or is not one of ours."""
        try:
            count = self.connection.recv_into(self._incoming[self._got :])
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._got += count
        if self._got < len(self._incoming):
            return count > 0
        self._got = 0
        return self._switchboard.greet(self, bytes(self._incoming)) if self.desk < 0 else self._take()

    def _take(self) -> bool:
        """A whole question."""
        words = np.frombuffer(self._incoming[:WORDS_BYTES], np.int64)
        if not 0 < words[ROWS] <= self._most_rows:
            return False
        self._question[:] = self._incoming[WORDS_BYTES:]
        self._words[ROWS], self._words[ASKED] = words[ROWS], words[ASKED]
        return True

    def answer(self) -> bool:
        """Send the answer, if there is one that was not sent; False if the other side does not take it."""
        ticket = int(self._words[ANSWERED])
        if ticket == self._replied or ticket != self._words[ASKED]:
            return True
        self._replied = ticket
        try:
            self.connection.settimeout(SEND_TIMEOUT_S)
            self.connection.sendall(b"".join((self._words.tobytes(), self._answer)))
            self.connection.setblocking(False)
        except OSError:
            return False
        return True


class _Reply:
    """What the inference process rings when a worker's question is answered."""

    def __init__(self, switchboard: Switchboard, worker: int) -> None:
        self._switchboard, self._worker = switchboard, worker

    def release(self) -> None:
        self._switchboard.reply(self._worker)

    def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool:
        return False


class _Silence:
    """Nobody is rung at desks that only one side uses."""

    def release(self) -> None:
        pass

    def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool:
        return False
