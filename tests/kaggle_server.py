"""A fake Kaggle server, and the tiny archives that it serves."""

import http.server
import io
import json
import random
import re
import tarfile
import time
import urllib.parse
import zipfile
from pathlib import Path

import py7zr
import pytest

from planet_jax.data import kaggle as downloads
from planet_jax.runtime.errors import BadInput

SLUG = "planet-understanding-the-amazon-from-space"
MIRROR = "someone/planet"
TRAIN = {f"train_{i}.jpg": random.Random(i).randbytes(300) for i in range(8)}
TEST = {f"test_{i}.jpg": b"t%d" % i for i in range(4)}
ADDITIONAL = {f"file_{i}.jpg": b"f%d" % i for i in range(3)}


def table(chips):
    return ("image_name,tags\n" + "".join(f"{n[:-4]},clear primary\n" for n in chips)).encode()


def tar_of(members, kind=tarfile.REGTYPE, link=""):
    """Return a tar of {path: content}; the content None makes a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in members.items():
            info = tarfile.TarInfo(path)
            info.type = kind if content is not None else tarfile.DIRTYPE
            info.linkname = link
            info.size = len(content or b"") if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


def seven_of(files):
    buffer = io.BytesIO()
    with py7zr.SevenZipFile(
        buffer, "w", filters=[{"id": py7zr.FILTER_LZMA2, "preset": 0}]
    ) as seven:
        for name, content in files.items():
            seven.writestr(content, name)
    return buffer.getvalue()


def archive_of(folder, chips):
    members = {folder: None} | {f"{folder}/{name}": chip for name, chip in chips.items()}
    return seven_of({f"{folder}.tar": tar_of(members)})


def zip_of(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


def tree(root):
    """Return {path: content} of a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def in_folder(folder, chips):
    return {f"{folder}/{name}": chip for name, chip in chips.items()}


FILES_OF_2017 = {
    "sample_submission_v2.csv.zip": zip_of(
        {"sample_submission_v2.csv": table(TEST | ADDITIONAL), "__MACOSX/._x.csv": b""}
    ),
    "test-jpg-additional.tar.7z": archive_of("test-jpg-additional", ADDITIONAL),
    "test-jpg.tar.7z": archive_of("test-jpg", TEST),
    "train-jpg.tar.7z": archive_of("train-jpg", TRAIN),
    "train_v2.csv.zip": zip_of({"train_v2.csv": table(TRAIN)}),
}


WHOLE = {"train_v2.csv": table(TRAIN)} | in_folder("train-jpg", TRAIN)
WHOLE_TEST = {
    **WHOLE,
    "sample_submission_v2.csv": table(TEST | ADDITIONAL),
    **in_folder("test-jpg", TEST),
    **in_folder("test-jpg-additional", ADDITIONAL),
}


def refused(root, **options):
    """Fetch, and return the one-line message of its BadInput."""
    with pytest.raises(BadInput) as caught:
        downloads.fetch(root, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


class Handler(http.server.BaseHTTPRequestHandler):
    """Answer Kaggle's list and download calls, and serve the storage that downloads redirect to."""

    def log_message(self, *args):
        pass

    def answer(self, code, body=b"{}", **headers):
        self.send_response(code)
        headers = {"Content-Type": "application/json", "Content-Length": len(body)} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        kaggle = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = self.path.rsplit("/", 1)[1]
        kaggle.calls.append((call, request.get("fileName", "")))
        code, message = kaggle.refuse.get(call, (200, ""))
        if code != 200:
            return self.answer(code, json.dumps({"code": code, "message": message}).encode())
        if call == "IntrospectToken":
            return self.answer(200, b'{"active": true, "username": "me"}')
        if call in kaggle.odd:
            return self.answer(200, b"<html>sign in</html>", Content_Type="text/html")
        source = (
            request.get("competitionName") or f"{request['ownerSlug']}/{request['datasetSlug']}"
        )
        files = kaggle.sources.get(source)
        if files is None:
            return self.answer(404, b'{"code": 404, "message": "Not found"}')
        if call.startswith("List"):
            return self.list(files, request)
        name = request.get("fileName", "")
        if name in kaggle.gone:
            return self.answer(404, b'{"code": 404, "message": "Not found"}')
        where = urllib.parse.quote(f"/storage/{source}/{name or '*archive.zip'}")
        return self.answer(302, b"", Location=f"{kaggle.url}{where}?signature=1")

    def list(self, files, request):
        size, start = min(request["pageSize"], self.server.page), int(request.get("pageToken") or 0)
        rows = [
            {"name": name, "totalBytes": self.server.sizes.get(name, len(content))}
            for name, content in sorted(files.items())[start : start + size]
        ]
        more = {"nextPageToken": str(start + size)} if start + size < len(files) else {}
        kind = "files" if "competitionName" in request else "datasetFiles"
        self.answer(200, json.dumps({kind: rows, **more}).encode())

    def do_GET(self):
        kaggle = self.server
        path = urllib.parse.unquote(self.path.split("?")[0]).removeprefix("/storage/")
        source = next(s for s in kaggle.sources if path.startswith(s))
        name = path.removeprefix(f"{source}/")
        content = kaggle.served.get(name) or kaggle.sources[source].get(name)
        if name == "*archive.zip":
            content = zip_of(kaggle.sources[source])
        tag = f'"{hash(content)}"'
        start = 0
        if "Range" in self.headers and self.headers.get("If-Range", tag) == tag:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        kaggle.gets.append((name, start))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        self.send_header("Last-Modified", "Thu, 20 Apr 2017 10:00:00 GMT")
        self.end_headers()
        stop = len(content)
        if kaggle.breaks:
            kaggle.breaks -= 1
            stop = start + (stop - start) // 2
        for at in range(start, stop, 2**14):
            try:
                self.wfile.write(content[at : min(at + 2**14, stop)])
            except OSError:  # the client was killed, or asks again with a range
                return
            time.sleep(kaggle.delay)


class Kaggle(http.server.ThreadingHTTPServer):
    """The fake server, with attributes for tests to change.

    Attributes:
      sources: {competition or data set: {path: content}}, as listed and served.
      refuse: {API call: (HTTP status, message)}.
      served: {file name: content} of files whose content differs from the one in `sources`.
      sizes: {file name: size} of files whose listed size is wrong.
      gone: files that are listed, but whose download is answered with 404.
      odd: API calls that are answered with a web page.
      calls: (API call, file name) of each call.
      gets: (file name, first byte) of each download.
      page: maximum number of files per page of a listing.
      delay: seconds between two pieces of 16 kB.
      breaks: number of downloads to break off halfway.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.sources = {SLUG: dict(FILES_OF_2017)}
        self.refuse, self.served, self.sizes, self.gone, self.odd = {}, {}, {}, set(), set()
        self.calls, self.gets = [], []
        self.page, self.delay, self.breaks = 200, 0.0, 0
