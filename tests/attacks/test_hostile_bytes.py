"""What may come over the border in place of an answer, byte by byte; and Markdown that would run."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time

import pytest
import torch  # noqa: F401  (its import is not timed)

from autograder.classes.safe_html import strip_files_prefix_safely
from autograder.grading.names import names
from autograder.grading.zmtp import GREETING, Broken, Dealer, TooMuch
from autograder.inside import data


@pytest.fixture
def answering(tmp_path):
    """A function that connects a Dealer to a peer which sends some bytes, then waits."""
    opened = []

    def connect(sent: bytes, most: int = 1000, end: bool = False) -> Dealer:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(tmp_path / f"s{len(opened)}"))
        listening.listen()
        opened.append(listening)

        def answer():
            peer, _ = listening.accept()
            opened.append(peer)
            try:
                peer.sendall(sent)
            except OSError:
                return
            if end:
                peer.close()

        threading.Thread(target=answer, daemon=True).start()
        made = Dealer(listening.getsockname(), most, 1)
        opened.append(made)
        return made

    yield connect
    for one in opened:
        one.close()


def frame(body: bytes, flags: int = 0) -> bytes:
    return bytes([flags, len(body)]) + body


READY = frame(b"\x05READY", 4)


def test_frames_make_messages_however_they_are_cut(answering):
    long = struct.pack(">BQ", 2, 300) + bytes(300)
    made = answering(GREETING + READY + frame(b"a", 1) + frame(b"") + long + frame(b"x", 1))
    assert made.receive(1) == [b"a", b""]
    assert made.receive(1) == [bytes(300)]
    assert made.receive(0.05) is None  # the last has not ended


@pytest.mark.parametrize("hostile", [
    frame(bytes(200), 1) * 6, frame(b"", 1) * 100, struct.pack(">BQ", 2, 2**63),
    struct.pack(">BQ", 3, 1001), struct.pack(">BQ", 6, 2**40),
])  # fmt: skip
def test_more_than_a_message_may_hold_is_not_read(answering, hostile):
    with pytest.raises(TooMuch):
        answering(GREETING + READY + hostile).receive(1)


@pytest.mark.parametrize("hostile", [b"HTTP/1.1 200 OK\r\n" + bytes(100), b"\xff" * 9, b""])
def test_who_does_not_greet_is_left(answering, hostile):
    with pytest.raises((Broken, TimeoutError)):
        answering(hostile)


def test_the_end_is_heard(answering):
    with pytest.raises(Broken):
        answering(GREETING + READY, end=True).receive(2)


@pytest.mark.parametrize("text", [
    "[" + "[]," * 2_000_000 + "[]]", "{" * 10**5, "[" * 10**5, "9" * 5000,
    json.dumps({"$": "array", "dtype": "float32", "shape": [0] + [2**31 - 1] * 7, "data": ""}),
    json.dumps({"$": "array", "dtype": "float32", "shape": [2**31 - 1] * 8, "data": ""}),
    json.dumps({"$": "array", "dtype": ["x"], "shape": [1], "data": ""}),
    json.dumps({"$": "dict", "items": [["a"]]}), json.dumps({"$": "dict", "items": {"a": 1}}),
], ids=range(9))  # fmt: skip
def test_what_is_no_answer_is_unreadable_and_soon(text):
    began = time.monotonic()
    with pytest.raises(data.Unreadable):
        data.decode(text)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("code", ["%time 1\n" * 3000, "!ls\n" * 500 + "x = 1\n" * 5000, "-" * 10**5,
                                  "x=(" + "1," * 10**6 + ")", "(" * 10**5])
def test_code_is_looked_into_in_no_time(code):
    began = time.monotonic()
    names(code)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("html", [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<a href='javascript:alert(1)'>x</a>",
    "<a href=' j&#x61;va\tscript:alert(1)'>x</a>", "<svg onload=alert(1)></svg>",
    "<iframe src=//x></iframe>", "<a href='data:text/html,x'>x</a>", "<style>p{}</style>",
    "<form action=//x><input></form>", "<details ontoggle=alert(1) open>x</details>",
    "<img src='data:image/svg+xml;base64,x'>", "<math><mtext></form><script>1</script>",
])  # fmt: skip
def test_markdown_that_would_run_is_shown_as_text(html):
    shown = strip_files_prefix_safely(html)
    for live in ("<script", "onerror=", "javascript:", "<svg", "<iframe", "data:text", "<style", "<form",
                 "ontoggle", "svg+xml"):
        assert live not in shown.replace("&lt;", "") or f"&lt;{live[1:]}" in shown


def test_honest_markdown_stays():
    html = ('<h2 id="a">A</h2><p>$x_1$ <em>b</em></p><table><tbody><tr><td align="left">1</td></tr></tbody></table>'
            '<img src="data:image/png;base64,AAAA" alt="x"><details><summary>s</summary></details>')
    assert strip_files_prefix_safely(html) == html
