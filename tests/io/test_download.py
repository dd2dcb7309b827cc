"""Downloads from a server that drops connections, lies, redirects and sends web pages."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import requests

from neurodl.errors import DownloadError, StorageError
from neurodl.io import download as module
from neurodl.io.download import download

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = '"version-1"'


class Server(BaseHTTPRequestHandler):
    """Each path behaves in its own way; what was asked is written down."""

    def log_message(self, *_args):
        pass

    def do_GET(self):
        state = self.server.state
        state.setdefault("asked", []).append((self.path, self.headers.get("Range")))
        getattr(self, "get_" + self.path.strip("/").split("/")[0])(state)

    def send(self, body, status=200, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def ranged(self, content=CONTENT, etag=ETAG, stop=None):
        """Answer a range request, and hang up after `stop` bytes of it."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        start = int(asked[1]) if asked and condition in (None, etag) else 0
        body = content[start:]
        if asked and start >= len(content):
            return self.send(b"", 416)
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers = {"ETag": etag} | ({"Content_Range": span} if start else {})
        self.send(body[:stop], 206 if start else 200, len(body), **headers)
        if stop is not None:
            self.close_connection = True

    def get_whole(self, _state):
        self.ranged()

    def get_drops(self, state):  # every connection brings 65,536 bytes
        self.ranged(stop=65_536)

    def get_forgets(self, state):  # drops, and then knows of no ranges
        if "dropped" not in state:
            state["dropped"] = True
            return self.ranged(stop=65_536)
        self.send(CONTENT)

    def get_changes(self, state):  # another file after the first connection
        if "dropped" not in state:
            state["dropped"] = True
            return self.ranged(b"old" * 50_000, '"version-0"', stop=65_536)
        self.ranged()

    def get_untagged(self, state):  # another length after the first connection, and no ETag
        first = "dropped" not in state
        state["dropped"] = True
        content = b"old" * 50_000 if first else CONTENT
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        body = content[start:]
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(
            body[: 65_536 if first else None],
            206 if start else 200,
            len(body),
            **({"Content_Range": span} if start else {}),
        )
        self.close_connection = first

    def get_longer(self, _state):  # says more than it sends
        self.send(CONTENT[:-1000], length=len(CONTENT))
        self.close_connection = True

    def get_shorter(self, _state):  # says less than there is
        self.send(CONTENT, length=len(CONTENT) - 1000)
        self.close_connection = True

    def get_elsewhere(self, _state):  # sends another range than was asked for
        if self.headers.get("Range"):
            span = f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}"
            return self.send(CONTENT[5:], 206, Content_Range=span)
        self.ranged(stop=65_536)

    def get_page(self, _state):
        self.send(b"\n <!DOCTYPE html><html>Log in</html>", Content_Type="text/html")

    def get_moved(self, _state):
        self.send(b"", 302, Location="/whole")

    def get_circle(self, _state):
        self.send(b"", 302, Location="/circle")

    def get_missing(self, _state):
        self.send(b"<html>gone</html>", 404)

    def get_busy(self, state):
        if len(state["asked"]) < 3:
            return self.send(b"", 503, Retry_After="7")
        self.ranged()

    def get_broken(self, _state):
        self.send(b"", 500)

    def get_huge(self, _state):
        self.send(b"x", length=10**15)

    def get_gzip(self, _state):  # stored packed; it must arrive as it is
        assert self.headers.get("Accept-Encoding") == "identity"
        self.send(CONTENT)

    def get_unsized(self, _state):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)
        self.close_connection = True


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    made.state = {}
    made.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(autouse=True)
def waited(monkeypatch):
    """Return the seconds that would have been waited."""
    seconds = []
    monkeypatch.setattr(module.time, "sleep", seconds.append)
    return seconds


def left_over(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize("path", ["whole", "moved", "gzip", "unsized"])
def test_what_arrives_is_what_was_sent(server, tmp_path, path):
    found = download(f"{server.url}/{path}", tmp_path / "new" / "kay.npz", sha256=SHA256)
    assert found.read_bytes() == CONTENT
    assert left_over(tmp_path / "new") == ["kay.npz"]


def test_broken_connections_are_continued_where_they_broke(server, tmp_path, waited):
    found = download(f"{server.url}/drops", tmp_path / "kay.npz")
    assert found.read_bytes() == CONTENT
    starts = [asked for _, asked in server.state["asked"]]
    assert starts == [None, *(f"bytes={start}-" for start in range(65_536, 300_000, 65_536))]
    assert waited == [1] * 4  # each brought something, so none of the waits grew


@pytest.mark.parametrize("path", ["forgets", "changes", "untagged"])
def test_a_rest_that_does_not_belong_is_not_appended(server, tmp_path, path):
    assert download(f"{server.url}/{path}", tmp_path / "a.npz").read_bytes() == CONTENT


def test_an_interrupted_download_goes_on_in_the_next_call(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WAITS", ())
    with pytest.raises(DownloadError, match="the connection ended after 65536 of 300000 bytes|Inc"):
        download(f"{server.url}/forgets", tmp_path / "a.npz")
    assert left_over(tmp_path) == [".a.npz.part", ".a.npz.part.json"]  # nothing looks whole
    server.state["asked"].clear()
    note = tmp_path / ".a.npz.part.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"url": f"{server.url}/whole"}))
    assert download(f"{server.url}/whole", tmp_path / "a.npz").read_bytes() == CONTENT
    assert server.state["asked"] == [("/whole", "bytes=65536-")]


def test_a_damaged_part_is_noticed_by_its_hash_and_fetched_anew(server, tmp_path, monkeypatch):
    (tmp_path / ".a.npz.part").write_bytes(b"\0" * 65_536)
    said = {"url": f"{server.url}/whole", "total": len(CONTENT), "validator": ETAG}
    (tmp_path / ".a.npz.part.json").write_text(json.dumps(said))
    found = download(f"{server.url}/whole", tmp_path / "a.npz", sha256=SHA256)
    assert found.read_bytes() == CONTENT
    assert [asked for _, asked in server.state["asked"]] == ["bytes=65536-", None]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("missing", {}, "404 Not Found"),
        ("page", {}, "sends a web page in place of the file"),
        ("circle", {}, "redirects"),
        ("whole", {"size": 5}, "it offers 300000 bytes; the file has 5"),
        ("whole", {"sha256": "0" * 64}, "hash"),
        ("shorter", {"size": len(CONTENT)}, "it offers 299000 bytes; the file has 300000"),
        ("shorter", {"sha256": SHA256}, "hash"),
        ("longer", {}, "299000"),
        ("elsewhere", {}, "asked for bytes from 65536 and sends 5-299999"),
        ("broken", {}, "500 Internal Server Error"),
        ("unsized", {"size": len(CONTENT) + 1}, "300000 of 300001"),
    ],
)
def test_lies_and_failures_are_told_and_leave_nothing_that_looks_whole(
    server, tmp_path, path, options, message
):
    with pytest.raises(DownloadError, match=message) as caught:
        download(f"{server.url}/{path}", tmp_path / "a.npz", **options)
    assert "a.npz could not be fetched" in str(caught.value)
    assert "a.npz" not in left_over(tmp_path)


def test_mirrors_are_tried_in_order(server, tmp_path):
    paths = ("missing", "page", "whole", "broken")
    urls = [f"{server.url}/{path}" for path in paths]
    assert download(urls, tmp_path / "a.npz").read_bytes() == CONTENT
    assert [path for path, _ in server.state["asked"]] == ["/missing", "/page", "/whole"]
    with pytest.raises(DownloadError, match=r"(?s)/missing: .*404.*\n  - .*/page: it sends"):
        download(urls[:2], tmp_path / "b.npz")


def test_a_busy_server_is_asked_again_when_it_says(server, tmp_path, waited):
    assert download(f"{server.url}/busy", tmp_path / "a.npz").read_bytes() == CONTENT
    assert waited == [7.0, 7.0]
    server.state["asked"].clear()
    waited.clear()
    with pytest.raises(DownloadError):
        download(f"{server.url}/broken", tmp_path / "b.npz")
    assert waited == list(module.WAITS)


def test_nobody_there(tmp_path):
    with pytest.raises(DownloadError, match="refused"):
        download("http://127.0.0.1:9/a", tmp_path / "a.npz")


@pytest.mark.parametrize(
    "url", ["http://example.org/a.npz", "ftp://example.org/a", "//127.0.0.1@x/"]
)
def test_unencrypted_addresses_need_a_hash(tmp_path, monkeypatch, url):
    asked = []

    def get(url, **_):
        asked.append(url)
        raise requests.ConnectionError("nobody")

    monkeypatch.setattr("neurodl.io.download.WAITS", ())
    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(DownloadError, match="anybody on the way could change it"):
        download(url, tmp_path / "a.npz")
    assert not asked
    with pytest.raises(DownloadError, match="nobody"):  # the encrypted one of two is asked
        download([url, "https://example.org/a.npz"], tmp_path / "a.npz")
    assert set(asked) == {"https://example.org/a.npz"}
    with pytest.raises(DownloadError):
        download(url, tmp_path / "a.npz", sha256="0" * 64)
    assert url in asked


def test_what_is_there_is_not_fetched_again(server, tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    path.write_bytes(CONTENT)
    monkeypatch.setenv("NEURODL_OFFLINE", "1")
    assert download(f"{server.url}/whole", path, sha256=SHA256) == path
    assert "asked" not in server.state
    with pytest.raises(DownloadError, match="NEURODL_OFFLINE forbids"):
        download(f"{server.url}/whole", tmp_path / "b.npz")
    monkeypatch.setenv("NEURODL_OFFLINE", "0")
    path.write_bytes(b"damaged")
    assert download(f"{server.url}/whole", path, sha256=SHA256).read_bytes() == CONTENT


def test_no_room_is_said_before_it_begins(server, tmp_path):
    with pytest.raises(StorageError, match=r"needs 1000000000 MB more.*NEURODL_DATA"):
        download(f"{server.url}/huge", tmp_path / "a.npz")


def test_two_at_once_fetch_it_once(server, tmp_path):
    found = []
    ask = {"target": lambda: found.append(download(f"{server.url}/whole", tmp_path / "a.npz"))}
    threads = [threading.Thread(**ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(server.state["asked"]) == 1
