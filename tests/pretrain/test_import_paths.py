"""What data may not name is never opened: paths out of its folder, other protocols, this machine."""

import http.server
import json
import threading

import pytest

from cluster import storage
from pretrain.data.packing.sources import list_records
from tests.pretrain.annotated import put
from tests.pretrain.shards import encoded
from tests.pretrain.source_files import imported, lines_of, photos

NO_PATHS = [
    "simplecache::http://127.0.0.1:1/x.png", "reference://x", "github://a:b@c/x.png", "ssh://host/x.png",
    "sftp://host/x", "memory://x.png", "zip://x.png::a.zip", "../secret.png", "a/../../secret.png",
    "data:image/png;base64,AAAA", "s3::x",
]  # fmt: skip


@pytest.mark.parametrize("bad", NO_PATHS)
def test_what_data_may_not_name_is_set_aside_and_never_opened(tmp_path, bad, monkeypatch):
    src = tmp_path / "src"
    photos(src, "a.png")
    put(tmp_path / "secret.png", encoded(9))
    opened = []
    original = storage.read_bytes
    monkeypatch.setattr(
        storage, "read_bytes", lambda url, **more: (opened.append(url), original(url, **more))[1]
    )
    put(src / "t.jsonl", "".join(json.dumps({"path": path}) + "\n" for path in ("a.png", bad)))
    images = [{"id": number, "file_name": name} for number, name in enumerate(("a.png", bad))]
    put(
        src / "c.json",
        json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "x"}]}),
    )
    xml = "".join(
        f'<image name="{name}"><box label="x" xtl="1" ytl="1" xbr="5" ybr="5"/></image>'
        for name in ("a.png", bad)
    )
    put(src / "v.xml", f"<annotations>{xml}</annotations>")
    for name in ("t.jsonl", "c.json", "v.xml"):
        listing = list_records(str(src / name))
        assert [record.url for record in listing.records] == [str(src / "a.png")], name
        assert len(listing.problems) == 1, name
    assert not any("secret" in url or "::" in url or "ssh" in url for url in opened)


class Redirects(http.server.BaseHTTPRequestHandler):
    """/N.png redirects to this machine, to a file, or is an image."""

    def do_GET(self):
        if self.path == "/image.png":
            data = encoded(1)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        self.send_response(302)
        port = self.server.server_address[1]
        self.send_header(
            "Location",
            {"/0.png": f"http://127.0.0.1:{port}/image.png", "/1.png": "file:///etc/passwd"}[self.path],
        )
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_redirects_to_this_machine_are_not_followed(tmp_path):
    pytest.importorskip("aiohttp")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirects) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        table = put(tmp_path / "t.csv", f"url\n{url}/image.png\n{url}/0.png\n{url}/1.png\n")
        _, rows, _ = imported(table, tmp_path / "out")
        server.shutdown()
    assert [row["image"]["bytes"] for row in rows.values()] == [encoded(1)]
    reasons = " ".join(line["reason"] for line in lines_of(tmp_path / "out", "_quarantine.jsonl"))
    assert "--allow-local-redirects" in reasons
