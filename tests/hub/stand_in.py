"""A Hub on this machine: repositories in memory, over the calls of HTTP that huggingface_hub makes."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".png", ".mp4", ".pth")  # what Git LFS keeps


@dataclass
class Repository:
    commits: list = field(default_factory=lambda: [("0" * 40, {})])  # (id, {path: content}), the newest last
    tags: dict = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def at(self, revision):
        """(commit, its files) of a branch, tag or commit."""
        wanted = self.commits[-1][0] if revision == "main" else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit[0] == wanted), None)

    def add(self, files):
        commit = hashlib.sha1(repr((self.commits[-1][0], sorted(files))).encode()).hexdigest()
        self.commits.append((commit, files))
        return commit


class StandIn(ThreadingHTTPServer):
    """Use as a context manager. asked: "METHOD path Range" of every request; unknown: of those
    that it has no answer to. cut: bytes after which a download's connection is
    closed, and no other is answered until it is None again. before_commit: called before a commit is looked at."""

    daemon_threads = True
    token = "hf_stand_in"

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.objects, self.asked, self.unknown = {}, {}, [], []
        self.cut, self.before_commit = None, lambda: None

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def put(self, name, files, **settings):
        """A repository with these {path: content}; returns its commit."""
        return self.repositories.setdefault(name, Repository(**settings)).add(files)


def described(path, content):
    if not path.endswith(LARGE):
        return {"rfilename": path, "size": len(content), "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
    lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return {"rfilename": path, "size": len(content), "blobId": "0" * 40, "lfs": lfs}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_call(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if hub.cut == "down":
            self.close_connection = True
            return
        said = self.headers.get("Authorization", "")
        if said and said != f"Bearer {hub.token}" and not path.startswith("/lfs/"):
            self.reply({"error": "Invalid credentials in Authorization header"}, 401,
                       {"X-Error-Message": "Invalid credentials in Authorization header"})
            return
        for pattern, call in CALLS:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                found = match.groupdict()
                if "name" in found:
                    found["repository"] = hub.repositories.get(found.pop("name"))
                    if found["repository"] is None or found["repository"].private and not said:
                        self.reply({"error": "Repository not found"}, 404 if said else 401, {"X-Error-Code": "RepoNotFound"})
                        return
                call(self, **found)
                return
        hub.unknown.append(hub.asked[-1])
        self.reply({"error": f"the stand-in does not know {self.command} {path}"}, 501)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_call

    def reply(self, content, status=200, headers=()):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # --- calls ---

    def nothing(self):
        """What the library asks for itself, and can do without."""
        self.reply({}, 404)

    def create(self):
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if not self.headers.get("Authorization"):
            return self.reply({"error": "Unauthorized"}, 401)
        if name in self.server.repositories:
            return self.reply({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.server.repositories[name] = Repository(private=private)
        self.reply({"url": f"{self.server.url}/{name}"})

    def validate(self):
        fit = "license:" in json.loads(self.body)["content"]
        self.reply({"errors": [] if fit else [{"message": "no license"}], "warnings": []}, 200 if fit else 400)

    def preupload(self, repository, revision):
        files = json.loads(self.body)["files"]
        self.reply({"files": [{"path": one["path"], "shouldIgnore": False, "uploadMode":
                               "lfs" if one["path"].endswith(LARGE) else "regular"} for one in files]})

    def batch(self, repository):
        def answer(one):
            known = one["oid"] in self.server.objects
            upload = {"actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}", "header": {}}}}
            return {**one, "authenticated": True, **({} if known else upload)}
        self.reply({"transfer": "basic", "objects": [answer(one) for one in json.loads(self.body)["objects"]]})

    def store(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.objects[oid] = self.body
        self.reply({})

    def commit(self, repository, revision):
        self.server.before_commit()
        head, files = repository.at(revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        parent = next(line["value"] for line in lines if line["key"] == "header").get("parentCommit")
        if parent and parent != head:
            return self.reply({"error": "Precondition failed: the branch has moved"}, 412)
        files = dict(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.add(files)
        self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/x/y/commit/{oid}"})

    def tag(self, repository, revision):
        repository.tags[json.loads(self.body)["tag"]] = repository.at(revision)[0]
        self.reply({})

    def refs(self, repository):
        def told(kind, name, commit):
            return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
        self.reply({"branches": [told("heads", "main", repository.commits[-1][0])], "converts": [],
                    "tags": [told("tags", name, commit) for name, commit in repository.tags.items()]})

    def info(self, repository, revision):
        if (found := repository.at(revision or "main")) is None:
            return self.reply({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        siblings = [described(path, content) for path, content in sorted(found[1].items())]
        self.reply({"id": "x/y", "sha": found[0], "private": repository.private, "siblings": siblings, "tags": []})

    def resolve(self, repository, revision, file):
        if repository.gated:
            return self.reply({"error": "Access to this model is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
        content = repository.at(revision)[1][file]
        headers, status, sent = {"X-Repo-Commit": repository.at(revision)[0]}, 200, content
        if wanted := self.headers.get("Range"):
            start = int(re.match(r"bytes=(\d+)-", wanted)[1])
            headers["Content-Range"], status, sent = f"bytes {start}-{len(content) - 1}/{len(content)}", 206, content[start:]
        if isinstance(self.server.cut, int) and len(sent) > self.server.cut:
            sent, self.server.cut, self.close_connection = sent[:self.server.cut], "down", True
            headers["Content-Length"] = str(len(content))
        self.reply(sent, status, headers)


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
CALLS = [
    (r"GET /api/agent-harnesses", Handler.nothing),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"POST /api/models/{NAME}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/(?P<oid>\w+)", Handler.store),
    (rf"POST /api/models/{NAME}/commit/(?P<revision>[^/]+)", Handler.commit),
    (rf"POST /api/models/{NAME}/tag/(?P<revision>[^/]+)", Handler.tag),
    (rf"GET /api/models/{NAME}/refs", Handler.refs),
    (rf"GET /api/models/{NAME}(?:/revision/(?P<revision>[^/]+))?", Handler.info),
    (rf"(?:GET|HEAD) /{NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", Handler.resolve),
]
