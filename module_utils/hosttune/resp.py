"""A client of Redis' protocol (RESP2), as small as asking and setting a server's configuration takes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any, Union

#: A socket's path, or a host and a port.
Address = Union[str, tuple[str, int]]
#: More than a reply of CONFIG GET can be; a server that sends more is none.
MOST_BYTES = 1 << 24


class ReplyError(Exception):
    """An error that the server answered with, such as `NOAUTH Authentication required.`"""


class Connection:
    """One connection; every method raises OSError where the server does not answer in time."""

    def __init__(self, address: Address, timeout: float = 5.0) -> None:
        self.address = address
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(address)
        except BaseException:
            self._socket.close()
            raise
        self._buffer = b""
        self._taken = 0

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_problem: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    @property
    def peer_pid(self) -> int:
        """The process that listens at the other end of a socket of the file system."""
        found = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", found)[0])

    def ask(self, *commands: Sequence[str]) -> list[Any]:
        """The replies to these commands, sent at once: text, numbers, None, lists, or a ReplyError."""
        self._socket.sendall(b"".join(map(_packed, commands)))
        return [self._reply() for _command in commands]

    def _reply(self) -> Any:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return _text(rest)
        if kind == b"-":
            return ReplyError(_text(rest))
        if kind not in (b":", b"$", b"*") or not rest.lstrip(b"-").isdigit():
            raise OSError(71, f"answers with '{_text(line[:40])}', which is not Redis' protocol")
        number = int(rest)
        if kind == b":":
            return number
        if number < 0:
            return None
        if kind == b"$":
            return _text(self._bytes(number + 2)[:-2])
        return [self._reply() for _item in range(number)]

    def _line(self) -> bytes:
        while True:
            end = self._buffer.find(b"\r\n")
            if end >= 0:
                found, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
                return found
            self._receive()

    def _bytes(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._receive()
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found

    def _receive(self) -> None:
        received = self._socket.recv(1 << 16)
        self._taken += len(received)
        if not received or self._taken > MOST_BYTES:
            raise OSError(
                104, "the server closed the connection" if not received else "the reply is too long"
            )
        self._buffer += received


def _packed(words: Sequence[str]) -> bytes:
    found = [b"*%d\r\n" % len(words)]
    for word in words:
        raw = word.encode("utf-8", "surrogateescape")
        found.append(b"$%d\r\n%s\r\n" % (len(raw), raw))
    return b"".join(found)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
