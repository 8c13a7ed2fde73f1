"""One ZeroMQ connection to a kernel, at arm's length: ZMTP 3.0 on a Unix socket.

The other end may be hostile. libzmq reads ahead of its user, a thousand messages of any number of
frames, and a kernel that sends one buffer again and again fills the grader's memory in seconds.
Here nothing is read before it is asked for, and what is read is counted first.
"""

from __future__ import annotations

import select
import socket
import struct
import time

MORE, LONG, COMMAND = 1, 2, 4
CHUNK = 1 << 20
MAX_FRAMES = 16
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


class Broken(ConnectionError):
    """The connection ended, or does not speak ZMTP."""


class TooMuch(Broken):
    """More came than a message may hold."""


class Dealer:
    """A DEALER socket, connected to the ROUTER that listens at `path`.

    most: bytes that a message from there may have. Raises Broken, and TimeoutError where the other
    end takes longer than `seconds` over the greeting.
    """

    def __init__(self, path: str, most: int, seconds: float):
        self._most = most
        self._read = bytearray()
        self._frames: list[bytes] = []
        until = time.monotonic() + seconds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(path)
            self._socket.sendall(GREETING)
            while len(self._read) < len(GREETING):
                if not self._more(until - time.monotonic()):
                    raise TimeoutError("no greeting")
            if self._read[0] != 0xFF or self._read[10] < 3:
                raise Broken("this is no ZMTP 3")
            del self._read[: len(GREETING)]
            self._send(COMMAND, b"\x05READY" + _property(b"Socket-Type", b"DEALER")
                       + _property(b"Identity", b""))
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, Broken | TimeoutError):
                raise Broken(str(error)) from None
            raise

    def close(self) -> None:
        self._socket.close()

    def send(self, frames: list[bytes], seconds: float) -> None:
        """Raises Broken, and TimeoutError where nobody reads it."""
        self._socket.settimeout(seconds)
        try:
            for number, frame in enumerate(frames, 1):
                self._send(MORE if number < len(frames) else 0, frame)
        except TimeoutError:
            raise
        except OSError as error:
            raise Broken(str(error)) from None

    def receive(self, seconds: float) -> list[bytes] | None:
        """The next message's frames; None where it is not complete after `seconds`.

        Raises Broken.
        """
        until = time.monotonic() + seconds
        while True:
            while frame := self._frame():
                flags, body = frame
                if flags & COMMAND:  # READY, and what newer versions say
                    continue
                self._frames.append(body)
                if not flags & MORE:
                    whole, self._frames = self._frames, []
                    return whole
            left = until - time.monotonic()
            if left <= 0 or not self._more(left):
                return None

    def _send(self, flags: int, body: bytes) -> None:
        self._socket.sendall(struct.pack(">BQ", flags | LONG, len(body)))
        self._socket.sendall(body)

    def _more(self, seconds: float) -> bool:
        """Read once; whether anything came within `seconds`."""
        if not select.select([self._socket], [], [], max(seconds, 0))[0]:
            return False
        try:
            read = self._socket.recv(CHUNK)
        except OSError as error:
            raise Broken(str(error)) from None
        if not read:
            raise Broken("it was closed")
        self._read += read
        return True

    def _frame(self) -> tuple[int, bytes] | None:
        """The next frame, if all of it was read. Raises TooMuch before it is."""
        if len(self._read) < 2:
            return None
        flags = self._read[0]
        head = 9 if flags & LONG else 2
        if len(self._read) < head:
            return None
        size = int.from_bytes(self._read[1:head], "big")
        held = sum(map(len, self._frames))
        if held + size > self._most or len(self._frames) == MAX_FRAMES:
            raise TooMuch(f"{held + size} bytes in {len(self._frames) + 1} frames")
        if len(self._read) < head + size:
            return None
        body = bytes(self._read[head : head + size])
        del self._read[: head + size]
        return flags, body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
