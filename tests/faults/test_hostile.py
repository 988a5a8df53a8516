"""A port that is no cluster's, or whose owner means harm: one clear error, in time, and no memory without end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from program import Quiet, mergeopt, serving

from optimizer.errors import ClusterError
from optimizer.remote import asking, jobs
from optimizer.remote.address import Endpoint


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token of whoever runs the tests."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@contextmanager
def speaking(speak: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does this with whoever comes; its address. In the end nobody is spoken to any more."""
    with ExitStack() as talks, socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    peer = server.accept()[0]
                    talk = threading.Thread(target=heard, args=[peer])
                    talks.callback(talk.join)
                    talks.callback(silence, peer)  # before it is waited for
                    talk.start()

        def heard(peer: socket.socket) -> None:
            with peer, suppress(OSError):
                peer.recv(65536)
                speak(peer)

        serving = threading.Thread(target=serve)
        serving.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        serving.join()


def silence(peer: socket.socket) -> None:
    with suppress(OSError):  # where it is closed already
        peer.shutdown(socket.SHUT_RDWR)


def reply(body: bytes, head: bytes = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n") -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def without_end(first: bytes, then: bytes, every: float) -> Callable[[socket.socket], None]:
    def speak(peer: socket.socket) -> None:
        peer.sendall(first)
        while True:
            peer.sendall(then)
            time.sleep(every)

    return speak


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ODD = {
    "ssh": b"SSH-2.0-OpenSSH\r\n",
    "nothing": b"",
    "long header": HEAD + b"x: " + b"a" * 70_000 + b"\r\n\r\n",
    "headers": HEAD + b"x: y\r\n" * 200 + b"\r\n",
    "chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "short": HEAD + b"Content-Length: 100\r\n\r\n{",
    "deep": reply(b"[" * 100_000),
    "empty": reply(b"{}"),
    "list": reply(b"[1]"),
    "number": reply(b'{"ray_version": 5}'),
    "orders": reply(b'{"ray_version": "2.\\u001b]0;own"}'),
    "digits": reply(b'{"ray_version": ' + b"5" * 5000 + b"}"),
    "no text": reply(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("said", list(ODD))
def test_who_does_not_speak_as_ray_does_is_refused_in_one_sentence(
    said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with speaking(lambda peer: peer.sendall(ODD[said])) as url:
        assert mergeopt("doctor", "--address", url) == 1
        assert "wrong" in capsys.readouterr().out
        assert mergeopt("cluster", "status", "--address", url) == 69
    refused = capsys.readouterr().err
    assert refused.startswith("error: ") and refused.count("\n") == 1 and "\x1b" not in refused


SLOW = {
    "a body by drops": without_end(HEAD + b"Content-Length: 900000\r\n\r\n", b" ", 0.05),
    "a header by drops": without_end(b"HTTP/1.1 200 OK\r\nx: ", b"y", 0.05),
    "a body without end": without_end(HEAD + b"\r\n", b" " * 65536, 0.0),
}


@pytest.mark.parametrize("how", list(SLOW))
def test_who_answers_without_end_is_left_in_time(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "IN_ALL", 0.3)
    monkeypatch.setattr(jobs, "FIRST_SECONDS", 0.5 if "drops" in how else 60)
    monkeypatch.setattr(jobs, "MOST_BYTES", 1_000_000)
    began = time.monotonic()
    with speaking(SLOW[how]) as url:
        assert asking.version(url, {}) == (-1, {})
        expected = "no whole answer within 0.5 s" if "drops" in how else "an answer of over 1000000 bytes"
        with pytest.raises(ClusterError, match=expected):
            jobs.Cluster(Endpoint(url, None))
    assert time.monotonic() - began < 30


def test_a_log_of_one_line_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LINE_BYTES", 1000)
    assert list(jobs._split(iter([b"ab\nc", b"d\n\n", b"e" * 999]))) == [b"ab", b"cd", b"", b"e" * 999]
    blocks = iter([b"x" * 600] * 1_000_000)
    with pytest.raises(OSError, match="a line of over 1000 bytes"):
        list(jobs._split(blocks))
    assert sum(1 for _ in blocks) > 999_000


@pytest.mark.parametrize("answer", [b"5", b"[5]", b'[{"type": 1}]', b'{"a": 1}', b'[{"type": "SUBMISSION"}]'])
def test_orders_that_no_cluster_tells_of_are_refused(answer: bytes) -> None:
    import ray

    class Odd(Quiet):
        def do_GET(self) -> None:
            version = b'{"ray_version": "%s"}' % ray.__version__.encode()
            self.wfile.write(reply(version if self.path == "/api/version" else answer))

    with serving(Odd) as port:
        there = jobs.Cluster(Endpoint(f"http://127.0.0.1:{port}", None))
        with pytest.raises(ClusterError, match="answers, but not as a Ray cluster does"):
            there.sent()


def test_what_an_order_answered_is_read_with_care() -> None:
    odd = "http://far answers, but not as a Ray cluster does: KeyError"
    with pytest.raises(ClusterError, match=odd), jobs.understood("http://far"):
        raise KeyError("folder")
    with pytest.raises(ClusterError, match="as it is"), jobs.understood("http://far"):
        raise ClusterError("as it is")
