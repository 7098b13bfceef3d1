"""A small web server on the loopback that behaves, and misbehaves, as it is told."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Resource:
    """What a path answers. `first` is answered before that, one for each request: a status and its headers."""

    body: bytes = b""
    etag: str | None = '"1"'
    last_modified: str | None = None
    kind: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True  # False: Range is ignored
    length: bool = True  # False: Content-Length is not sent
    first: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    break_after: list[int] = field(default_factory=list)  # bytes of the body, one for each answer that breaks off


@dataclass
class Request:
    """A request that came: its path with the query, and its headers."""

    path: str
    headers: Mapping[str, str]


class WebServer(ThreadingHTTPServer):
    """Serves `resources` by path, or what `answer(query)` gives as JSON; remembers every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        self.resources: dict[str, Resource] = {}
        self.json_answers: dict[str, Callable[[dict[str, str]], object]] = {}
        self.requests: list[Request] = []

    def url(self, path: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}{path}"

    def ranges(self) -> list[str | None]:
        """The Range header of each request, in their order."""
        return [request.headers.get("Range") for request in self.requests]

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that break off are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        self.server.requests.append(Request(self.path, dict(self.headers)))
        path = urlsplit(self.path)
        if path.path in self.server.json_answers:
            answer = self.server.json_answers[path.path](dict(parse_qsl(path.query)))
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())
        elif path.path not in self.server.resources:
            self.answer(404, {"Content-Type": "text/html"}, b"<html>nothing here</html>")
        else:
            self.serve(self.server.resources[path.path])

    def serve(self, resource: Resource) -> None:
        if resource.first:
            self.answer(*resource.first.pop(0), b"")
            return
        headers = {"Content-Type": resource.kind, **resource.headers}
        if resource.etag is not None:
            headers["ETag"] = resource.etag
        if resource.last_modified is not None:
            headers["Last-Modified"] = resource.last_modified
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, resource.etag, resource.last_modified)
        if asked is None or not same or not resource.ranges:
            self.answer(200, headers, resource.body, resource)
            return
        start, size = int(asked[1]), len(resource.body)
        if start >= size:
            self.answer(416, {"Content-Range": f"bytes */{size}"}, b"")
        else:
            headers = {"Content-Range": f"bytes {start}-{size - 1}/{size}", **headers}
            self.answer(206, headers, resource.body[start:], resource)

    def answer(self, status: int, headers: Mapping[str, str], body: bytes, resource: Resource | None = None) -> None:
        self.send_response(status)
        if resource is None or resource.length:
            self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        whole = resource is None or not resource.break_after
        self.wfile.write(body if whole else body[: resource.break_after.pop(0)])  # type: ignore[union-attr]
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def web_server(certificate: Path | None = None) -> Iterator[WebServer]:
    """A server that runs until the block ends; with HTTPS where a certificate with its key is given."""
    server = WebServer()
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_certificate(path: Path) -> None:
    """Write a certificate for 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    unencrypted = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, pkcs8, unencrypted))
