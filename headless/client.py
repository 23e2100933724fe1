"""A client of ComfyUI's HTTP API and websocket, for scripts, the demo and the tests.

    with Client("http://127.0.0.1:8188") as client:
        result = client.run(prompt)                      # a workflow in API form, as a dict
        pictures = [client.file(entry) for entry in result.files()]

This one file is the whole library, and needs Python 3.10 and aiohttp, which comes with ComfyUI: put its folder on the
path, or copy it. Plain blocking calls, which several threads may make at once. The websocket is read by a thread of its
own with an event loop of its own, so the client also works where the caller's thread runs a loop already.

A lost connection is mended: see `Client`.
"""

import asyncio
import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

# A proxy in the environment is for the world outside, not for the server on this machine.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

ENDS = ("execution_success", "execution_error", "execution_interrupted")
QUIET_S = 5       # so long without an event about a prompt, and `wait` asks the server for it
RETRY_S = 0.2     # between two tries to reach the server
ANSWER_S = 60     # for one answer of the server, which is slow while it loads a model
HEARTBEAT_S = 60  # a connection that died without a word is noticed after 1.5 times this
GATEWAY = (502, 503, 504)  # what a proxy says while the server behind it is gone
FOR_ALL = ("status", "reconnected", "lost")  # events about no prompt
UNKNOWN = object()  # of a prompt: neither queued nor run


class Refused(Exception):
    """The server did not take a prompt. status: HTTP status. answer: its JSON, with `error` and `node_errors`."""

    def __init__(self, status, answer):
        self.status, self.answer = status, answer
        super().__init__(f"HTTP {status}: {'; '.join(reasons(answer))}")


class Failed(Exception):
    """A prompt was taken and did not finish. result: the `Result` up to then; its `error` says why."""

    def __init__(self, result):
        self.result = result
        error = result.error
        super().__init__(f"{error.get('node_type', 'ComfyUI')}: "
                         f"{error.get('exception_message', result.end).strip()}")


class Forgotten(ConnectionError):
    """The server has the prompt neither in its queue nor in its history: it was restarted, or somebody deleted it."""


@dataclass
class Result:
    """What became of one prompt."""

    prompt_id: str
    end: str = ""                                # one of ENDS
    error: dict = field(default_factory=dict)    # execution_error's data: node_type, exception_message, traceback, ...
    outputs: dict = field(default_factory=dict)  # {node id: what the node showed}; cached nodes' output included
    events: list = field(default_factory=list)   # [(type, data)] in order; ("binary", bytes) for previews
    cached: list = field(default_factory=list)   # ids of nodes that were not run again
    seconds: float = 0.0                         # from the begin of the waiting to the prompt's end

    def of_type(self, name):
        """The data of all events of one type."""
        return [data for kind, data in self.events if kind == name]

    def files(self):
        """[{filename, subfolder, type}] of the pictures, videos and sounds that nodes showed, in the order of their ids."""
        return [entry for _, output in sorted(self.outputs.items()) for shown in output.values() if isinstance(shown, list)
                for entry in shown if isinstance(entry, dict) and "filename" in entry]

    def take(self, kind, data):
        self.cached = data["nodes"] if kind == "execution_cached" else self.cached
        self.error = data if kind == "execution_error" else self.error
        self.end = kind if kind in ENDS else self.end

    def finish(self, entry):
        """Take in the prompt's entry in the history: what was shown, and what the events that were missed said."""
        self.outputs, status = entry.get("outputs", {}), entry.get("status") or {}
        for kind, data in status.get("messages", []):
            self.take(kind, data)
        self.end = self.end or ("execution_success" if status.get("completed") else "execution_error")


@dataclass
class Preview:
    """A picture of a half-done step. format: "jpeg" or "png". metadata: node_id, prompt_id and more, where the host says."""

    format: str
    image: bytes
    metadata: dict = field(default_factory=dict)


def preview(data):
    """The `Preview` in the bytes of a "binary" event; None when they are something else (text, a kind of the future).

    The layout is of ComfyUI's server.py: 4 bytes of kind, big-endian. 1 is a picture after 4 bytes of format; 4, for
    clients that ask for it, a picture after 4 bytes of length and so many of JSON.
    """
    kind, number = (int.from_bytes(data[at:at + 4], "big") for at in (0, 4))
    if kind == 1:
        return Preview("png" if number == 2 else "jpeg", data[8:])
    if kind == 4:
        metadata = json.loads(data[8:8 + number])
        return Preview(metadata["image_type"].removeprefix("image/"), data[8 + number:], metadata)
    return None


def reasons(answer):
    """The texts in a refusal, from the general one to those of the nodes."""
    if not isinstance(answer, dict):
        return [str(answer)[:300]]
    error = answer.get("error", {})
    found = [error.get("message", "") if isinstance(error, dict) else str(error)]
    for node in answer.get("node_errors", {}).values():
        found += [f"{node['class_type']}: {one['message']} ({one['details']})" for one in node["errors"]]
    return [text for text in found if text]


class Client:
    """url: http://host:port. Close it, or use it as a context manager.

    A server that does not answer at first is a ConnectionError at once. When the connection is lost later, or the server
    restarts, the client goes on trying for `patience_s` seconds, and then asks the server what became of its prompts; 0 is
    one try. A prompt that the restarted server has forgotten is queued again by `run`; `wait` raises Forgotten.
    """

    def __init__(self, url, patience_s=60):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"The server's address is {url!r}; write it as http://127.0.0.1:8188.")
        self.url = url.rstrip("/")
        self.patience_s = patience_s
        self.id = str(uuid.uuid4())
        self.inboxes = {}       # {id of a prompt that is not waited for to its end yet: queue of its events}
        self.running = None     # the prompt that the events without an id are about
        self.breaks = 0         # how often the websocket was lost
        self.lost = ""          # why it is closed for good
        self.loop = asyncio.new_event_loop()
        tried = threading.Event()
        self.thread = threading.Thread(target=self._listen, args=(tried,), daemon=True)
        self.thread.start()
        tried.wait()
        if self.lost:
            raise ConnectionError(f"No ComfyUI answers at {self.url}: {self.lost}.")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """End the websocket; prompts that are queued go on at the server."""
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.listener.cancel)
            self.thread.join(10)

    # --- the websocket ---

    def _listen(self, tried):
        asyncio.set_event_loop(self.loop)
        self.listener = self.loop.create_task(self._read(tried))
        try:
            self.loop.run_until_complete(self.listener)
        except asyncio.CancelledError:
            self.lost = "the client was closed"
        except Exception as error:
            self.lost = str(error) or type(error).__name__
        finally:
            self._deliver("lost", {})
            tried.set()
            self.loop.close()

    async def _read(self, tried):
        import aiohttp  # comes with ComfyUI

        until = 0.0  # the first connection gets one try
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    connecting = session.ws_connect(f"{self.url}/ws?clientId={self.id}", max_msg_size=0,
                                                    heartbeat=HEARTBEAT_S)
                    socket = await asyncio.wait_for(connecting, ANSWER_S)
                except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
                    if time.monotonic() >= until:
                        raise
                else:
                    if tried.is_set():
                        self.running = None
                        self._deliver("reconnected", {})
                    tried.set()
                    async with socket:
                        async for message in socket:
                            if message.type == aiohttp.WSMsgType.TEXT:
                                event = json.loads(message.data)
                                self._deliver(event["type"], event["data"])
                            elif message.type == aiohttp.WSMsgType.BINARY:
                                self._deliver("binary", message.data)
                    self.breaks += 1
                    until = time.monotonic() + self.patience_s
                await asyncio.sleep(RETRY_S)

    def _deliver(self, kind, data):
        named = data.get("prompt_id") if isinstance(data, dict) else None
        if named in self.inboxes:
            self.running = named
        for prompt_id, inbox in list(self.inboxes.items()):
            if kind in FOR_ALL or prompt_id == (named or self.running):
                inbox.put((kind, data))

    # --- HTTP ---

    def request(self, path, data=None, content_type="application/json"):
        """(status, bytes) of a GET, or of a POST of these bytes. Raises ConnectionError when there is no answer."""
        request = urllib.request.Request(self.url + path, data, {"Content-Type": content_type} if data else {})
        try:
            with opener.open(request, timeout=ANSWER_S) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            if error.code in GATEWAY:
                raise ConnectionError(f"{self.url}{path}: HTTP {error.code}, no ComfyUI behind the proxy") from error
            return error.code, error.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(f"{self.url}{path}: {getattr(error, 'reason', error) or type(error).__name__}") from error

    def get_bytes(self, path):
        """Raises OSError on any status but 200; so does `get`, which gives the JSON in them."""
        status, data = self.request(path)
        if status != 200:
            raise OSError(f"{self.url}{path}: HTTP {status}")
        return data

    def get(self, path):
        return json.loads(self.get_bytes(path))

    def post(self, path, body):
        """(status, answer): of a POST of `body` as JSON; the answer as JSON where it is JSON, else as text."""
        status, data = self.request(path, json.dumps(body).encode())
        try:
            return status, json.loads(data)
        except ValueError:
            return status, data.decode("utf-8", errors="replace")

    def file(self, entry):
        """The bytes of one of `Result.files()`."""
        return self.get_bytes(f"/view?{urllib.parse.urlencode(entry)}")

    def upload(self, source, name=None, overwrite=False):
        """Put a picture, or another file, into the server's folder input/; returns its name there, as LoadImage takes it.

        source: path, or the file's bytes, which need a name. Without overwrite, a file of that name with another content
        stays, and the new one gets a number.
        """
        if isinstance(source, (str, Path)):
            name, source = name or Path(source).name, Path(source).read_bytes()
        if not name:
            raise ValueError("Bytes need a name to upload them under: upload(data, name='picture.png').")
        name = name.replace('"', "%22")
        boundary, field_of = uuid.uuid4().hex, 'Content-Disposition: form-data; name='
        body = "\r\n".join([
            f"--{boundary}", f'{field_of}"overwrite"', "", str(overwrite).lower(),
            f"--{boundary}", f'{field_of}"image"; filename="{name}"', "Content-Type: application/octet-stream", "", "",
        ]).encode() + source + f"\r\n--{boundary}--\r\n".encode()
        status, answer = self.request("/upload/image", body, f"multipart/form-data; boundary={boundary}")
        if status != 200:
            raise OSError(f"The server did not take {name}: HTTP {status}")
        return json.loads(answer)["name"]

    # --- prompts ---

    def queue(self, prompt, prompt_id=None, **extra):
        """Send a prompt in API form; returns its id, `prompt_id` where it is given (a UUID). Its events are kept for `wait`.

        extra: more for the request: extra_data, front, ... Raises Refused, ConnectionError. The id is ours, so that after a
        lost answer the server can be asked whether it has the prompt, and it is not run twice.
        """
        prompt_id = prompt_id or str(uuid.uuid4())
        body = {"prompt": prompt, "client_id": self.id, **extra, "prompt_id": prompt_id}
        self.inboxes[prompt_id] = queue.SimpleQueue()
        try:
            status, answer = self._send(body)
            if status != 200:
                raise Refused(status, answer)
        except BaseException:
            self.inboxes.pop(prompt_id, None)
            raise
        return prompt_id

    def _send(self, body):
        until, unsure = time.monotonic() + self.patience_s, False
        while True:
            try:
                if unsure and self._entry(body["prompt_id"]) is not UNKNOWN:
                    return 200, {}
                return self.post("/prompt", body)
            except ConnectionError:
                if time.monotonic() >= until:
                    raise
            unsure = True
            time.sleep(RETRY_S)  # the server may have read the prompt and not queued it yet

    def position(self, prompt_id):
        """A prompt's place in the server's queue: 0 when it runs, 1 when it is the next one, None when it is not there."""
        answer = self.get("/queue")
        if any(item[1] == prompt_id for item in answer["queue_running"]):
            return 0
        pending = [item[1] for item in sorted(answer["queue_pending"], key=lambda item: item[:2])]
        return pending.index(prompt_id) + 1 if prompt_id in pending else None

    def history(self, prompt_id):
        """What the server keeps of an ended prompt: {prompt, outputs, status, ...}; None when there is nothing."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def interrupt(self, prompt_id):
        """Stop one prompt, or take it out of the queue; others go on. `wait` then gives a Result with the end
        "execution_interrupted". False: there was nothing to stop."""
        if self.position(prompt_id) is None:
            return False
        self.post("/queue", {"delete": [prompt_id]})
        self.post("/interrupt", {"prompt_id": prompt_id})  # does nothing unless the prompt runs
        if prompt_id in self.inboxes and self._entry(prompt_id) is UNKNOWN:  # of a deleted one the server says nothing
            self.inboxes[prompt_id].put(("execution_interrupted", {"prompt_id": prompt_id}))
        return True

    def wait(self, prompt_id, timeout_s=300, on_event=None):
        """The `Result` of a queued prompt. on_event(type, data) is called as events come in; ("reconnected", {}) tells of
        a gap in them. A prompt of another client has none.

        Raises TimeoutError (after which it may be waited for again), Forgotten, and ConnectionError when the server is gone
        for longer than the client's patience.
        """
        pause = QUIET_S if prompt_id in self.inboxes else 0.0
        inbox = self.inboxes.setdefault(prompt_id, queue.SimpleQueue())
        result = Result(prompt_id)
        start = now = time.monotonic()
        entry = None
        while entry is None:
            left = start + timeout_s - now
            try:
                kind, data = inbox.get(timeout=max(0.0, min(left, pause)))
            except queue.Empty:
                kind, data = "quiet", {}
            now = time.monotonic()
            pause = QUIET_S
            if kind not in ("quiet", "lost"):
                result.events.append((kind, data))
                result.take(kind, data)
                if on_event:
                    on_event(kind, data)
            if kind in ("quiet", "lost", "reconnected", *ENDS):
                entry = self._ended(prompt_id, result.end)
                if entry is None and self.lost:
                    raise ConnectionError(f"ComfyUI has gone: {self.lost}")
                if entry is None and kind == "quiet" and left <= 0:
                    raise TimeoutError(f"no end of the prompt after {timeout_s} s")
            if result.end:
                pause = RETRY_S / 10  # the event of the end comes a moment before the entry in the history
        result.seconds = now - start
        result.finish(entry)
        self.inboxes.pop(prompt_id, None)
        return result

    def _ended(self, prompt_id, end):
        """The history entry of a prompt whose end is known so far as `end`; None while there is none. Raises Forgotten."""
        try:
            entry = self._entry(prompt_id)
        except ConnectionError:
            return None  # the websocket notices it too
        if entry is UNKNOWN:
            if end == "execution_interrupted":  # deleted before its begin
                return {}
            self.inboxes.pop(prompt_id, None)
            raise Forgotten(f"ComfyUI at {self.url} does not know the prompt {prompt_id} any more: it was restarted, or the "
                            "prompt was deleted there. Queue it again.")
        return entry

    def _entry(self, prompt_id):
        """A prompt's entry in the history; None while it waits or runs; UNKNOWN. The queue is asked first: what leaves it is
        in the history at once."""
        if self.position(prompt_id) is not None:
            return None
        return self.history(prompt_id) or UNKNOWN

    def run(self, prompt, timeout_s=300, on_event=None, **extra):
        """Queue and wait; once more if the server was restarted meanwhile and forgot the prompt.

        Raises Refused, Failed, TimeoutError, ConnectionError. extra: as for `queue`.
        """
        start, breaks = time.monotonic(), self.breaks
        prompt_id = self.queue(prompt, **extra)
        try:
            result = self.wait(prompt_id, timeout_s, on_event)
        except Forgotten:
            if self.breaks == breaks:  # nobody restarted the server, so somebody deleted the prompt
                raise
            self.queue(prompt, **{**extra, "prompt_id": prompt_id})
            result = self.wait(prompt_id, timeout_s - (time.monotonic() - start), on_event)
        if result.end != "execution_success":
            raise Failed(result)
        return result
