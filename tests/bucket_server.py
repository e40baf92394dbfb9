"""An S3 server and a GCS emulator on the loopback, behind a proxy that injects faults.

The GCS emulator ignores conditions on an object's generation (as of 2026.7), so the proxy enforces
`ifGenerationMatch=0`. moto enforces `If-None-Match` itself.
"""

import contextlib
import http.client
import logging
import re
import socketserver
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Proxy(ThreadingHTTPServer):
    """Forward requests to a store.

    Attributes:
      fault: "", "slow" (0.2 s a request), "503", "403", "reset", or "truncated": half of each
        answer with a body.
      writes_until_fault: after so many writes, all requests are reset until `fault` is set again.
      counts: number of requests by method.
    """

    daemon_threads = True

    def __init__(self, backend: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.backend, self.fault, self.counts = backend, "", Counter()
        self.writes_until_fault = -1
        self.create_lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:  # a client that went away
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *args) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            size = int(self.headers.get("Content-Length", 0))
            content = self.rfile.read(size)
            if len(content) < size:  # the client was killed; a store drops what it has sent
                raise ConnectionAbortedError
            return content
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):  # ValueError: killed
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _answer(self, status, headers, content, sent=None) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        length = {k.lower(): v for k, v in headers}.get("content-length", "0")
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if sent is None else content[:sent])

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        store = http.client.HTTPConnection("127.0.0.1", self.server.backend, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
        store.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = store.getresponse()
        content = answer.read()
        store.close()
        return answer.status, answer.getheaders(), content

    def _exists(self, body: bytes) -> bool:
        """Return whether the object that a GCS request would create exists already."""
        bucket = self.path.split("/b/")[1].split("/")[0]
        name = re.findall(r'"name":\s*"([^"]+)"', body.decode("latin-1"))
        store = http.client.HTTPConnection("127.0.0.1", self.server.backend, timeout=60)
        store.request("GET", f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name[0], safe='')}")
        answer = store.getresponse()
        answer.read()
        store.close()
        return answer.status == 200

    def _serve(self) -> None:
        proxy, body = self.server, self._body()
        proxy.counts[self.command] += 1
        if self.command in ("PUT", "POST") and proxy.writes_until_fault >= 0:
            if proxy.writes_until_fault == 0:
                proxy.fault = "reset"
            proxy.writes_until_fault -= 1
        fault = proxy.fault
        if fault == "reset":
            self.close_connection = True
            self.connection.close()
            return
        if fault in ("503", "403"):
            self._answer(int(fault), [("Content-Type", "text/plain")], b"no")
            return
        if fault == "slow":
            time.sleep(0.2)
        if "uploadType=multipart" in self.path:
            # gcsfs ends lines with \n; with it the emulator removes a \r of the content.
            body = body.removesuffix(b"\n--==0==--") + b"\r\n--==0==--"
        if "ifGenerationMatch=0" in self.path:
            with proxy.create_lock:
                if self._exists(body):
                    self._answer(412, [("Content-Type", "text/plain")], b"conditionNotMet 412")
                    return
                answer = self._forward(body)
        else:
            answer = self._forward(body)
        cut = fault == "truncated" and len(answer[2]) > 1 and self.command == "GET"
        self._answer(*answer, sent=len(answer[2]) // 2 if cut else None)
        if cut:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _serve


@contextlib.contextmanager
def serve(kind: str) -> Iterator[tuple[Proxy, dict[str, str]]]:
    """Serve an empty store with the bucket `bucket`; yield its proxy and the clients' environment.

    `kind` is "s3" or "gs".
    """
    if kind == "s3":
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        proxy = Proxy(server.get_host_and_port()[1])
        environment = {
            "AWS_ENDPOINT_URL": proxy.address, "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "2",
        }  # fmt: skip
        _request(proxy.server_port, "PUT", "/bucket")
    else:
        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        from gcp_storage_emulator import server as emulator

        with socketserver.TCPServer(("127.0.0.1", 0), None) as free:
            port = free.server_address[1]
        server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
        server.start()
        proxy = Proxy(port)
        environment = {
            "STORAGE_EMULATOR_HOST": proxy.address,
            "NO_GCE_CHECK": "true",  # google-auth looks for a metadata server for seconds
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks for credentials
        }
    try:
        yield proxy, environment
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


def _request(port: int, method: str, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Authorization": "AWS key:secret"})
    assert connection.getresponse().status == 200
    connection.close()
