"""A stand-in for the Hugging Face hub on the loopback interface, for tests that download through huggingface_hub.

It answers `HEAD` and `GET /{repository}/resolve/{revision}/{file}` as the hub does: small files come from itself, large
ones from a storage of another origin to which it sends on, a moved repository is sent on to its new name, and what is
refused has the hub's status and X-Error-Code. Of a data set it also lists the files. It remembers all requests, and
breaks down when and how it is told to.
"""

import hashlib
import http.server
import itertools
import json
import re
import socket
import struct
import sys
import threading
import urllib.parse
from typing import NamedTuple


class Request(NamedTuple):
    method: str
    path: str
    range: str | None
    token: str | None

    def __str__(self):
        return " ".join(filter(None, (self.method, self.path, self.range)))


class Breakdown(NamedTuple):
    """A transfer that ends after so many bytes: the connection is closed, or reset, or nothing more comes."""

    after: int
    how: str = "close"  # or "reset" or "stall"


class Repository:
    def __init__(self):
        self.commits = {}  # commit -> {file name: bytes}
        self.refs = {}  # branch, tag, .. -> commit
        self.token = None  # the one token that is let in, where not everybody is
        self.gated = False  # whether the others are told that they may ask for access
        self.statuses = iter(())  # the next requests are answered with these, without what a hub adds
        self.transfers = {}  # file name -> iterator of what the next ones are: a Breakdown, or other bytes, or None

    def commit(self, files, *refs):
        """Add a commit with these files, {name: bytes}, to which the refs then point; return it."""
        content = b"".join(name.encode() + b"\0" + files[name] for name in sorted(files))
        commit = hashlib.sha1(content).hexdigest()
        self.commits[commit] = files
        self.refs |= dict.fromkeys(refs, commit)
        return commit

    def resolve(self, revision):
        """Return the commit that a ref, a commit or the first 7 or more digits of one mean, or None."""
        digits = [commit for commit in self.commits if len(revision) >= 7 and commit.startswith(revision)]
        return self.refs.get(revision, digits[0] if digits else None)


class Hub:
    """Serves from when it is made until `close`; as a context manager, until the end of the block."""

    def __init__(self):
        self.repositories = {}
        self.moved = {}  # old name -> new name
        self.statuses = itertools.repeat(200)  # of the next requests for its front page
        self.requests = []
        self.errors = []  # of this server itself, of which there should be none
        self.closed = threading.Event()
        self._servers = [_Server(self), _Server(self)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def add(self, name, files):
        """Add a repository with these files on its branch main; return it."""
        self.repositories[name] = Repository()
        self.repositories[name].commit(files, "main")
        return self.repositories[name]

    def take(self, what=""):
        """Return the requests so far whose path has `what` in it, as text, and forget all of them."""
        requests, self.requests = self.requests, []
        return [str(request) for request in requests if what in request.path]

    def close(self):
        if not self.closed.is_set():
            self.closed.set()
            for server in self._servers:
                server.shutdown()
                server.server_close()
        assert not self.errors

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, hub):
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, *_):
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):  # a client may hang up
            self.hub.errors.append(error)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open, as with the hub

    def do_HEAD(self):
        hub = self.server.hub
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        hub.requests.append(Request(self.command, self.path, self.headers.get("Range"), token))
        # A revision is one component of the path: in refs/pr/1 the slashes are quoted.
        if match := re.fullmatch(r"/((?:datasets/)?[^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", self.path):
            self.resolve(*map(urllib.parse.unquote, match.groups()), token)
        elif match := re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)/(revision|tree)/([^/?]+)(?:\?.*)?", self.path):
            self.list(*map(urllib.parse.unquote, match.groups()))
        elif match := re.fullmatch(r"/storage/(.+)/([0-9a-f]{40})/([^/]+)", self.path):
            name, commit, file = match.groups()
            repository = hub.repositories[name]
            self.send_file(repository, file, repository.commits[commit][file])
        else:
            self.answer(next(hub.statuses) if self.path == "/" else 404)

    do_GET = do_HEAD

    def resolve(self, name, revision, file, token):
        hub = self.server.hub
        if name in hub.moved:
            return self.answer(307, Location=self.path.replace(f"/{name}/", f"/{hub.moved[name]}/", 1))
        repository = hub.repositories.get(name)
        if repository is None:
            # Without a token, a repository that does not exist and a private one look the same.
            return self.answer(404, X_Error_Code="RepoNotFound") if token else self.answer(401)
        if status := next(repository.statuses, None):
            return self.answer(status)
        if repository.token not in (None, token):
            if repository.gated:
                return self.answer(403 if token else 401, X_Error_Code="GatedRepo")
            return self.answer(401, X_Error_Message="Invalid credentials in Authorization header" if token else None)
        commit = repository.resolve(revision)
        if commit is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if file not in repository.commits[commit]:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = repository.commits[commit][file]
        if not file.endswith((".safetensors", ".bin")):
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # the one it has in Git
            return self.send_file(repository, file, content, X_Repo_Commit=commit, ETag=f'"{etag}"')
        self.answer(
            302,
            Location=f"{hub.storage_url}/storage/{name}/{commit}/{file}",
            X_Repo_Commit=commit,
            X_Linked_Size=str(len(content)),
            X_Linked_ETag=f'"{hashlib.sha256(content).hexdigest()}"',
            ETag='"that of the pointer in Git"',
        )

    def list(self, name, what, revision):
        """Say which commit a revision of a data set is, or which files it has."""
        repository = self.server.hub.repositories.get(name)
        if repository is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        commit = repository.resolve(revision)
        if commit is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        files = repository.commits[commit]
        found = {"id": name.removeprefix("datasets/"), "sha": commit,
                 "siblings": [{"rfilename": file} for file in files]}
        tree = [{"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()]
        self.answer(200, json.dumps(found if what == "revision" else tree).encode(), Content_Type="application/json")

    def send_file(self, repository, file, content, **headers):
        """Send the content, from the byte that is asked for on; or what the repository's `transfers` have instead."""
        transfer = next(repository.transfers.get(file, iter(())), None) if self.command == "GET" else None
        content = transfer if isinstance(transfer, bytes) else content
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        breakdown = transfer if isinstance(transfer, Breakdown) else None
        self.answer(206 if start else 200, content[start:], breakdown, Accept_Ranges="bytes", **headers)

    def answer(self, status, content=b"<html>a page</html>", breakdown=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: breakdown.after] if breakdown else content)
        if breakdown:
            self.close_connection = True
        if breakdown and breakdown.how == "stall":
            self.server.hub.closed.wait(30)
        if breakdown and breakdown.how == "reset":  # SO_LINGER with a time of 0: what was not sent yet is not sent
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()

    def log_message(self, *_):
        pass
