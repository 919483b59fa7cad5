"""A mirror of a hub on 127.0.0.1: the part of the hub's interface by which huggingface_hub finds and fetches files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]


@dataclass
class Mirror:
    """What it serves, and what it was asked for."""

    url: str = ""
    repositories: dict[str, dict[str, Files]] = field(default_factory=dict)
    """`models/OWNER/NAME` or `datasets/OWNER/NAME` -> branch -> files."""
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    """`METHOD /path` of every request."""

    def commit(self, repository: str, branch: str = "main") -> str:
        """The commit of the branch: a digest of its files."""
        files = self.repositories[repository][branch]
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        api = parts[0] == "api"
        parts = parts[1:] if api else parts if parts[0] == "datasets" else ["models", *parts]
        repository, (verb, *rest) = "/".join(parts[:3]), [*parts[3:], ""]
        if repository not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if repository in self.gated and not api:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        revision = rest[0] if verb in ("revision", "tree", "resolve") else "main"
        branches = {self.commit(repository, branch): files for branch, files in self.repositories[repository].items()}
        commit = self.commit(repository, revision) if revision in self.repositories[repository] else revision
        if commit not in branches:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = branches[commit]
        if verb == "tree":
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return 200, {}, json.dumps(listed).encode()
        if verb == "resolve":
            content = files["/".join(filter(None, rest[1:]))]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return 200, {"ETag": etag, "X-Repo-Commit": commit}, content
        return 200, {}, json.dumps({"id": "/".join(parts[1:3]), "sha": commit, "siblings": []}).encode()


@contextmanager
def serving() -> Iterator[Mirror]:
    """A mirror that answers until the block ends."""
    mirror = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mirror.asked.append(f"{self.command} {self.path}")
            status, headers, body = mirror.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET
        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    mirror.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
