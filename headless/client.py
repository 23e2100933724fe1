"""A client of ComfyUI's HTTP API and websocket, for the demo and the tests.

Plain blocking calls. The websocket is read by a thread of its own with an event loop of its own, so the client also
works where the caller's thread runs a loop already (Playwright's does).
"""

import asyncio
import json
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field

# A proxy in the environment is for the world outside, not for the server on this machine.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

ENDS = ("execution_success", "execution_error", "execution_interrupted")


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


@dataclass
class Result:
    """What became of one prompt."""

    prompt_id: str
    end: str = ""                                # one of ENDS
    error: dict = field(default_factory=dict)    # execution_error's data: node_type, exception_message, traceback, ...
    outputs: dict = field(default_factory=dict)  # {node id: what the node showed}; cached nodes' output included
    events: list = field(default_factory=list)   # [(type, data)] in order; ("binary", bytes) for previews
    cached: list = field(default_factory=list)   # ids of nodes that were not run again
    timings: dict = field(default_factory=dict)  # {node id: seconds}
    seconds: float = 0.0                         # from the prompt's sending to its end

    def of_type(self, name):
        """The data of all events of one type."""
        return [data for kind, data in self.events if kind == name]

    def files(self):
        """[{filename, subfolder, type}] of the pictures that nodes showed, in the order of the nodes' ids."""
        return [entry for _, output in sorted(self.outputs.items()) for entry in output.get("images", [])]


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
    """url: http://host:port without a slash at the end. Close it, or use it as a context manager."""

    def __init__(self, url):
        self.url = url
        self.id = str(uuid.uuid4())
        self.inbox = queue.Queue()
        self.loop = asyncio.new_event_loop()
        connected = threading.Event()
        self.thread = threading.Thread(target=self._listen, args=(connected,), daemon=True)
        self.thread.start()
        connected.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.listener.cancel)
            self.thread.join(10)

    # --- the websocket ---

    def _listen(self, connected):
        asyncio.set_event_loop(self.loop)
        self.listener = self.loop.create_task(self._read(connected))
        try:
            self.loop.run_until_complete(self.listener)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self.inbox.put(("lost", str(error)))
        finally:
            connected.set()
            self.loop.close()

    async def _read(self, connected):
        import aiohttp  # comes with ComfyUI

        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{self.url}/ws?clientId={self.id}", max_msg_size=0) as socket:
                connected.set()
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        self.inbox.put((event["type"], event["data"]))
                    elif message.type == aiohttp.WSMsgType.BINARY:
                        self.inbox.put(("binary", message.data))
        self.inbox.put(("lost", "the server closed the connection"))

    # --- HTTP ---

    def request(self, path, body=None, timeout_s=60):
        """(status, bytes) of a GET, or of a POST of `body` as JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} if data else {})
        try:
            with opener.open(request, timeout=timeout_s) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get_bytes(self, path):
        """Raises OSError on any status but 200."""
        status, data = self.request(path)
        if status != 200:
            raise OSError(f"{self.url}{path}: HTTP {status}")
        return data

    def get_text(self, path):
        return self.get_bytes(path).decode("utf-8")

    def get(self, path):
        return json.loads(self.get_bytes(path))

    def post(self, path, body):
        """(status, answer): the answer as JSON where it is JSON, else as text."""
        status, data = self.request(path, body)
        try:
            return status, json.loads(data)
        except ValueError:
            return status, data.decode("utf-8", errors="replace")

    def file(self, entry):
        """The bytes of one of `Result.files()`."""
        return self.get_bytes(f"/view?{urllib.parse.urlencode(entry)}")

    # --- prompts ---

    def queue(self, prompt, **extra):
        """Send a prompt in API form; returns its id. Raises Refused."""
        status, answer = self.post("/prompt", {"prompt": prompt, "client_id": self.id, **extra})
        if status != 200:
            raise Refused(status, answer)
        return answer["prompt_id"]

    def wait(self, prompt_id, timeout_s=300, on_event=None):
        """The `Result` of a queued prompt. on_event(type, data) is called as events come in.

        Raises TimeoutError, and ConnectionError when the server goes away.
        """
        result = Result(prompt_id)
        start = now = time.monotonic()
        running, since = None, now
        while not result.end:
            try:
                kind, data = self.inbox.get(timeout=max(0.0, start + timeout_s - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no end of the prompt after {timeout_s} s") from None
            if kind == "lost":
                raise ConnectionError(f"ComfyUI has gone: {data}")
            if isinstance(data, dict) and data.get("prompt_id", prompt_id) != prompt_id:
                continue
            now = time.monotonic()
            result.events.append((kind, data))
            if on_event:
                on_event(kind, data)
            if kind in ("executing", *ENDS):
                if running is not None:
                    result.timings[running] = result.timings.get(running, 0.0) + now - since
                running, since = data.get("node") if kind == "executing" else None, now
            if kind == "execution_cached":
                result.cached = data["nodes"]
            if kind == "execution_error":
                result.error = data
            if kind in ENDS:
                result.end = kind
        result.seconds = now - start
        result.outputs = self._outputs(prompt_id)
        return result

    def _outputs(self, prompt_id):
        # The event of a prompt's end comes a moment before its entry in the history.
        for _ in range(100):
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id].get("outputs", {})
            time.sleep(0.02)
        return {}

    def run(self, prompt, timeout_s=300, on_event=None, **extra):
        """Queue and wait. Raises Refused, Failed, TimeoutError, ConnectionError."""
        result = self.wait(self.queue(prompt, **extra), timeout_s, on_event)
        if result.end != "execution_success":
            raise Failed(result)
        return result
