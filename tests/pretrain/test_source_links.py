"""Tables of links: read in parallel, with dead ones and keys among them, and from a store that goes away."""

import http.server
import threading
import time
from contextlib import contextmanager

import pytest

from cluster.errors import UserError
from tests.pretrain.shards import encoded
from tests.pretrain.source_files import packed, quarantined, write


class Images(http.server.BaseHTTPRequestHandler):
    """/N.png is an image, after a while; anything else is gone."""

    lock, at_once, max_at_once = threading.Lock(), 0, 0

    def do_GET(self):
        with Images.lock:
            Images.at_once += 1
            Images.max_at_once = max(Images.max_at_once, Images.at_once)
        time.sleep(0.05)
        with Images.lock:
            Images.at_once -= 1
        name = self.path.partition("?")[0].strip("/").removesuffix(".png")
        data = encoded(int(name)) if name.isdigit() else b""
        self.send_response(200 if data else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@contextmanager
def web():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Images) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_table_of_links_is_read_in_parallel_and_its_keys_stay_out(tmp_path):
    pytest.importorskip("aiohttp")
    with web() as url:
        links = [f"{url}/{n}.png?X-Amz-Signature=VERYSECRET{n}" for n in range(40)] + [
            f"{url}/dead?token=VERYSECRET"
        ]
        links.append("http://127.0.0.1:1/refused.png?token=VERYSECRET")
        table = write(tmp_path / "t.csv", "url\n" + "\n".join(links) + "\n")
        started = time.monotonic()
        rows = packed(table, tmp_path / "out")
    assert sorted(row["image"] for row in rows.values()) == sorted(map(encoded, range(40)))
    assert Images.max_at_once >= 8
    assert time.monotonic() - started < 15, "a refused connection is not waited for like a store"
    reasons = quarantined(tmp_path / "out").values()
    assert len(reasons) == 2 and all(reason.startswith("cannot be read") for reason in reasons)
    for file in (tmp_path / "out").iterdir():
        assert b"VERYSECRET" not in file.read_bytes(), file


def test_a_store_that_is_gone_stops_the_import_and_back_it_continues(tmp_path):
    rows = [f"{n}.png" for n in range(300)]
    table = write(tmp_path / "src" / "t.csv", "path\n" + "\n".join(rows) + "\n")
    write(tmp_path / "src" / rows[0], encoded(0))
    with pytest.raises(
        UserError, match=r"200 images in a row cannot be read \(last: \d+\.png: .*the same command cont"
    ):
        packed(table, tmp_path / "out")
    for number, name in enumerate(rows):
        write(tmp_path / "src" / name, encoded(number))
    assert len(packed(table, tmp_path / "out")) == 300 and not quarantined(tmp_path / "out")
