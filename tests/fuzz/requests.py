"""A page of `sttm serve`, requests to it that are wrong in a place, and what is wrong with an answer."""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.cases import NAMES
from tests.fuzz.values import changed_bytes, changed_json, odd_text

#: Seconds that an answer may take.
PATIENCE = 300
API = "/gradio_api"
BOUNDARY = "----sttm"
#: Files that nobody may be shown, and a text that is in one of them.
SECRETS = ["/etc/passwd", "/proc/self/environ", "../../../../etc/passwd", "/dev/zero", "pyproject.toml", "src/sttm"]
SECRETS += ["./README.md", "file:///etc/passwd"]
SECRETS += ["http://127.0.0.1:9/x", "~/.ssh/id_rsa", "%2e%2e/%2e%2e/etc/passwd", "\\\\host\\x", "/proc/self/cwd/x"]
ROUTES = ["/", "/config", f"{API}/info", f"{API}/openapi.json", "/theme.css", "/assets/x", "/static/../../x", "/login"]
ROUTES += [f"{API}/{name}" for name in ("queue/data", "queue/status", "run/classify", "api/classify")]
ROUTES += [f"{API}/call/classify/absent", f"{API}/stream/x/1/2/playlist.m3u8"]


@dataclass(frozen=True)
class Answer:
    """What came back: a status, 0 for a connection that ended without one, and a body."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Page:
    """A page that listens: its address, the folder of uploads, the name of its model, and paths that stay secret."""

    address: str
    uploads: Path
    model: str
    secret: tuple[str, ...]

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> Answer:
        """Send a request, and return the answer."""
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        try:
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        except (ConnectionError, http.client.HTTPException):
            return Answer(0, b"")
        finally:
            connection.close()

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.address).netloc

    def connect(self) -> socket.socket:
        """Return a connection, for what is no request."""
        name, port = self.host.split(":")
        return socket.create_connection((name, int(port)), PATIENCE)

    def upload(self, data: bytes, name: str = "clip.mp4") -> Answer:
        """Upload a file."""
        return self.ask("POST", f"{API}/upload", multipart(data, name), f"multipart/form-data; boundary={BOUNDARY}")

    def classify(self, body: bytes) -> Answer:
        """Call the API, and return the answer to the call or, where it was taken, all that follows."""
        taken = self.ask("POST", f"{API}/call/classify", body)
        try:
            event = json.loads(taken.body)["event_id"]
        except (ValueError, KeyError, TypeError):
            return taken
        return self.ask("GET", f"{API}/call/classify/{event}")

    def body_for(self, handle: str) -> bytes:
        """Return what asks for the classification of an uploaded file."""
        file = {"path": handle, "meta": {"_type": "gradio.FileData"}}
        return json.dumps({"data": [file, self.model, "sttm", 0.6]}).encode()

    def fault(self, answer: Answer) -> str | None:
        """Return what is wrong with an answer."""
        text = answer.body.decode("utf-8", "replace")
        if not answer.status:
            return "the connection ended without an answer"
        if answer.status >= 500 and answer.status != 503:  # the queue is full
            return f"status {answer.status}: {text[:200]}"
        if "Traceback" in text or "root:x:0" in text or "[build-system]" in text:
            return f"shows {text[:200]}"
        # The handle of an upload is a file in the folder of uploads.
        shown = next((path for path in self.secret if path in text.replace(str(self.uploads), "")), None)
        return None if shown is None else f"shows {shown}"


def multipart(data: bytes, name: str) -> bytes:
    """Return a form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
    middle = "Content-Type: video/mp4\r\n\r\n"
    return (head + middle).encode("utf-8", "surrogatepass") + data + f"\r\n--{BOUNDARY}--\r\n".encode()


# --- one odd request -------------------------------------------------------------------------------------------


def odd_request(page: Page, rng: random.Random, clip: bytes, handle: str) -> tuple[str, Answer]:
    """Send a request that is wrong in a place; return its kind and the answer."""
    kind = rng.choice(["json", "json", "values", "file", "upload", "form", "queue", "route", "bytes"])
    match kind:
        case "json":
            body = changed_json(page.body_for(handle).decode(), rng).encode("utf-8", "surrogatepass")
            return kind, page.classify(body)
        case "values":
            secret = {"path": rng.choice(SECRETS), "meta": {"_type": "gradio.FileData"}}
            file: Any = rng.choice([secret, secret | {"url": rng.choice(SECRETS)}, rng.choice(SECRETS), None, [], 1])
            others: list[list[Any]] = [[page.model, "sttm", 7], [odd_text(rng), "x", "y"], [], [None] * 9]
            return kind, page.classify(json.dumps({"data": [file, *rng.choice(others)]}).encode())
        case "file":
            place = urllib.parse.quote(rng.choice(SECRETS), safe="/%:~.\\")
            return kind, page.ask("GET", f"{API}/{rng.choice(['file=', 'file/', 'proxy='])}{place}")
        case "upload":
            name = rng.choice([*NAMES, *SECRETS, "x" * 5000, "", "a\r\nb"])
            return kind, page.upload(rng.choice([b"", clip, b"x" * 1000]), name)
        case "form":
            form = changed_bytes(multipart(clip, "clip.mp4"), rng)
            return kind, page.ask("POST", f"{API}/upload", form, f"multipart/form-data; boundary={BOUNDARY}")
        case "queue":
            join = {"data": [None, page.model, "sttm", 0.6], "fn_index": rng.randrange(-1, 4), "session_hash": "x"}
            body = changed_json(json.dumps(join), rng).encode("utf-8", "surrogatepass")
            return kind, page.ask("POST", f"{API}/queue/join", body)
        case "route":
            method = rng.choice(["GET", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
            route = rng.choice(ROUTES) + rng.choice(["", "", "?x=%00", "/" + "a" * 3000])
            return kind, page.ask(method, route, odd_text(rng).encode("utf-8", "replace") if method == "POST" else None)
        case _:
            return kind, _bytes(page, rng)


def _bytes(page: Page, rng: random.Random) -> Answer:
    """Send bytes that are hardly a request."""
    whole = f"POST {API}/call/classify HTTP/1.1\r\nHost: {page.host}\r\nContent-Length: 9\r\n\r\n".encode()
    with page.connect() as connection:
        connection.sendall(changed_bytes(whole, rng) + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        try:
            said = b"".join(iter(lambda: connection.recv(65536), b""))
        except ConnectionError:
            said = b""
    status = re.match(rb"HTTP/1.1 (\d{3})", said)
    return Answer(int(status[1]) if status else 400, said)  # closed without a word: refused
