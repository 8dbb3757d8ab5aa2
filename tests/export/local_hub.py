"""A server that speaks the part of the hub's protocol that huggingface_hub uses here.

Log-in, creation of repositories and branches, commits with files in them and with large files
(git LFS), model information and downloads. Xet, the hub's other storage, is not there: clients set
HF_HUB_DISABLE_XET.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"
USER = "tester"
NAME = r"(?P<repo>[^/]+/[^/]+)"
LARGE = (".safetensors", ".pt", ".onnx")

Files = dict[str, bytes]


@dataclass
class LocalHub:
    """The contents of the hub.

    Attributes:
        address: for HF_ENDPOINT.
        repositories: the commit of each branch of each repository.
        visibility: as repositories were created.
        commits: the files of each commit.
        objects: large files by their SHA-256.
        requests: method and path of each request.
    """

    address: str = ""
    repositories: dict[str, dict[str, str]] = field(default_factory=dict)
    visibility: dict[str, str | None] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def create(self, repo: str, files: Files | None = None, branch: str = "main") -> str:
        """Create a repository or a branch with a commit of these files; the commit."""
        commit = self._commit(files or {})
        self.repositories.setdefault(repo, {})[branch] = commit
        return commit

    def _commit(self, files: Files) -> str:
        parts = [f"{len(self.commits)}"] + [
            f"{name} {hashlib.sha1(content).hexdigest()}" for name, content in files.items()
        ]
        commit = hashlib.sha1("\n".join(parts).encode()).hexdigest()
        self.commits[commit] = files
        return commit

    def find(self, repo: str, revision: str) -> str | None:
        """The commit of a branch, or that begins so."""
        if revision in self.repositories[repo]:
            return self.repositories[repo][revision]
        return next((commit for commit in self.commits if commit.startswith(revision)), None)

    def add(self, repo: str, branch: str, lines: list[dict[str, Any]]) -> str:
        """Add a commit, given as the client sends it."""
        files = dict(self.commits[self.repositories[repo][branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        return self.create(repo, files, branch)


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serve an empty hub on this machine."""
    hub = LocalHub()

    class Handler(_Handler):
        held = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    held: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.held.requests.append(f"{self.command} {path}")
        length = self.headers.get("Content-Length")
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self._chunks() if chunked else self.rfile.read(int(length or 0))
        for pattern, name in ROUTES.items():
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                repo = found.groupdict().get("repo")
                if repo is not None and repo not in self.held.repositories:
                    self._send(404, {"error": "Repository not found"}, error="RepoNotFound")
                    return
                getattr(self, name)(body, **found.groupdict())
                return
        self._send(501, {"error": f"{self.command} {path} is not implemented"})

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(
        self,
        status: int,
        content: dict[str, Any] | bytes,
        error: str | None = None,
        **headers: str,
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        if error is not None:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", error)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def _logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _refuse(self, repo: str) -> bool:
        """Whether the client may not write to a repository; it has its answer then."""
        if not self._logged_in:
            self._send(401, {"error": "Invalid credentials"})
        elif not repo.startswith(f"{USER}/"):
            self._send(403, {"error": f"You do not have the rights to write to {repo}"})
        else:
            return False
        return True

    def whoami(self, _: bytes) -> None:
        if self._logged_in:
            self._send(200, {"name": USER, "type": "user", "orgs": []})
        else:
            self._send(401, {"error": "Invalid username or password."})

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        repo = f"{wanted['organization'] or USER}/{wanted['name']}"
        if self._refuse(repo):
            return
        address = {"url": f"{self.held.address}/{repo}"}
        if repo in self.held.repositories:
            self._send(409, {**address, "error": "You already created this model repo"})
            return
        self.held.create(repo)
        self.held.visibility[repo] = wanted.get("visibility")
        self._send(200, address)

    def branch(self, _: bytes, repo: str, branch: str) -> None:
        if self._refuse(repo):
            return
        if branch in self.held.repositories[repo]:
            self._send(409, {"error": "The branch exists"})
            return
        self.held.repositories[repo][branch] = self.held.repositories[repo]["main"]
        self._send(201, {})

    def validate(self, _: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str, branch: str) -> None:
        if self._refuse(repo):
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._send(200, {"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        if self._refuse(repo):
            return
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.held.address}/objects/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.held.objects[oid] = body
        self._send(200, {})

    def commit(self, body: bytes, repo: str, branch: str) -> None:
        if self._refuse(repo):
            return
        lines = [json.loads(line) for line in body.splitlines()]
        commit = self.held.add(repo, branch, lines)
        address = f"{self.held.address}/{repo}/commit/{commit}"
        self._send(200, {"commitUrl": address, "commitOid": commit, "success": True})

    def info(self, _: bytes, repo: str, revision: str | None = None) -> None:
        commit = self.held.find(repo, revision or "main")
        if commit is None:
            self._send(404, {"error": "Invalid rev id"}, error="RevisionNotFound")
            return
        siblings = [{"rfilename": name} for name in self.held.commits[commit]]
        self._send(200, {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings})

    def tree(self, _: bytes, repo: str, revision: str, folder: str | None = None) -> None:
        commit = self.held.find(repo, revision)
        if commit is None:
            self._send(404, {"error": "Invalid rev id"}, error="RevisionNotFound")
            return
        entries = [
            {
                "type": "file",
                "path": name,
                "size": len(content),
                "oid": hashlib.sha1(content).hexdigest(),
            }
            for name, content in self.held.commits[commit].items()
            if folder is None or name.startswith(f"{folder}/")
        ]
        if folder is not None and not entries:
            self._send(404, {"error": "not there"}, error="EntryNotFound")
            return
        self._send(200, json.dumps(entries).encode())

    def resolve(self, _: bytes, repo: str, revision: str, file: str) -> None:
        commit = self.held.find(repo, revision)
        if commit is None:
            self._send(404, {"error": "Invalid rev id"}, error="RevisionNotFound")
            return
        content = self.held.commits[commit].get(file)
        if content is None:
            self._send(404, {"error": "not there"}, error="EntryNotFound", X_Repo_Commit=commit)
            return
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self._send(200, content, ETag=etag, X_Repo_Commit=commit)


ROUTES = {
    r"GET /api/whoami-v2": "whoami",
    r"POST /api/repos/create": "create",
    r"POST /api/validate-yaml": "validate",
    rf"POST /api/models/{NAME}/branch/(?P<branch>.+)": "branch",
    rf"POST /api/models/{NAME}/preupload/(?P<branch>.+)": "preupload",
    rf"POST /api/models/{NAME}/commit/(?P<branch>.+)": "commit",
    rf"POST /{NAME}\.git/info/lfs/objects/batch": "batch",
    r"PUT /objects/(?P<oid>[0-9a-f]+)": "store",
    rf"GET /api/models/{NAME}": "info",
    rf"GET /api/models/{NAME}/revision/(?P<revision>[^/]+)": "info",
    rf"GET /api/models/{NAME}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?": "tree",
    rf"(GET|HEAD) /{NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)": "resolve",
}
