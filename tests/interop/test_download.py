"""Downloads from a local server that drops connections, changes its file, or serves another one."""

import hashlib
import http.server
import threading

import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop import download, released

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at /weights.pth, drops a connection after `cut` bytes, and records the `ranges` asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag, self.cut, self.ranges, self.redirect, self.serves_ranges = (
            CONTENT,
            '"1"',
            None,
            [],
            "",
            True,
        )
        self.url = f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if self.path != "/weights.pth":
            self.send_error(404)
            return
        start = 0
        if asked and server.serves_ranges and self.headers.get("If-Range") == server.tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(server.content) - start))
        self.send_header("ETag", server.tag)
        self.end_headers()
        rest = server.content[start:]
        self.wfile.write(rest if server.cut is None else rest[: server.cut])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("MAE_PP_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_dropped_connections_go_on_where_they_were(server):
    server.cut = 300_000
    path = download.fetch(server.url, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_later_command_goes_on_and_a_third_asks_nobody(server, monkeypatch):
    server.cut = 300_000
    monkeypatch.setattr(download, "TRIES", 0)
    with pytest.raises(UserError, match="goes on where it stopped"):
        download.fetch(server.url)
    monkeypatch.setattr(download, "TRIES", 3)
    server.ranges.clear()
    server.cut = None
    assert download.fetch(server.url).read_bytes() == CONTENT
    server.ranges.clear()
    assert download.fetch(server.url, sha256=SHA256).read_bytes() == CONTENT
    assert server.ranges == []


def test_a_file_that_changes_meanwhile_starts_again(server):
    server.cut = 300_000
    other = CONTENT[::-1]
    send = Handler.do_GET

    def change_then_send(handler):
        if len(server.ranges) == 1:
            server.content, server.tag, server.cut = other, '"2"', None
        send(handler)

    Handler.do_GET = change_then_send
    try:
        assert download.fetch(server.url).read_bytes() == other
    finally:
        Handler.do_GET = send
    assert server.ranges == [None, "bytes=300000-"]


def test_a_server_without_ranges_sends_all_again(server):
    server.serves_ranges, server.cut = False, 600_000
    sends = []
    send = Handler.do_GET

    def whole_the_second_time(handler):
        sends.append(1)
        if len(sends) == 2:
            server.cut = None
        send(handler)

    Handler.do_GET = whole_the_second_time
    try:
        assert download.fetch(server.url).read_bytes() == CONTENT
    finally:
        Handler.do_GET = send


@pytest.mark.parametrize("known", [dict(sha256="0" * 64), dict(md5_prefix="abcdef")])
def test_a_wrong_file_is_removed(server, tmp_path, known):
    with pytest.raises(UserError, match="was removed") as error:
        download.fetch(server.url, **known)
    assert "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_cached_file_that_changed_is_noticed(server):
    path = download.fetch(server.url)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match="was removed"):
        download.fetch(server.url)
    assert download.fetch(server.url).read_bytes() == CONTENT


def test_a_drop_without_end_is_told(server, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 3)
    server.cut = 0
    with pytest.raises(UserError, match="cannot be downloaded"):
        download.fetch(server.url)
    assert len(server.ranges) == 3


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a"])
def test_redirects_stay_on_the_web(server, target):
    server.redirect = target
    with pytest.raises(UserError, match="not followed"):
        download.fetch(server.url.replace("weights.pth", "away"))


@pytest.mark.parametrize(
    "url, words", [("ftp://127.0.0.1/a", "only http"), ("http://127.0.0.1:1/a", "cannot be downloaded")]
)
def test_other_urls(server, monkeypatch, url, words):
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(UserError, match=words):
        download.fetch(url)


def test_a_missing_file_is_told_at_once(server):
    with pytest.raises(UserError, match="404"):
        download.fetch(server.url + "x")


def test_released_names():
    assert released.find("maws:vit_b16").url.endswith("/maws/pretrain/maws/vit_b16.pt")
    assert "maws/pretrain/mae/vit_l16.pt" in released.find("mae:vit_l16").url
    assert released.find("maws_clip:vit_h14_xlmr_l").figure == "zero-shot at 224: 81.1"
    assert released.find("some/file.pth") is None and released.find("https://host/a:b") is None
    with pytest.raises(UserError, match="did you mean maws:vit_b16"):
        released.find("maws:vit_b_16")
    table = released.table()
    for name, release in released.RELEASES.items():
        assert name in table and release.url in table and "CC-BY-NC 4.0" in release.licence
