"""A stand-in for ComfyUI's server: its HTTP API and websocket, with a queue whose prompts run when the test says so, and
with faults on demand. No node is run."""

import asyncio
import threading

from aiohttp import web

from sanacog.headless.launcher import ADDRESS, free_port


class StandIn:
    """deaf: send no events. refuse: answer as a proxy does whose server is gone. lose: {path: "request" or "answer"}, of the
    next POST there."""

    def __init__(self):
        self.port = free_port()
        self.url = f"http://{ADDRESS}:{self.port}"
        self.deaf = self.refuse = False
        self.refused = 0  # so many times
        self.lose, self.posts, self.uploads = {}, [], []
        self.start()

    def start(self):
        """With an empty queue and no history, as ComfyUI starts."""
        self.pending, self.running, self.history, self.number = [], [], {}, 0
        self.sockets, self.clients_seen = {}, []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.do(self._listen())

    def stop(self):
        if self.thread.is_alive():
            self.do(self._end())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()

    def do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    async def _listen(self):
        app = web.Application(middlewares=[self._proxy])
        app.add_routes([web.get("/ws", self._socket), web.get("/queue", self._queue), web.post("/prompt", self._prompt),
                        web.get("/history/{id}", self._history), web.post("/queue", self._delete),
                        web.post("/interrupt", self._interrupt), web.post("/upload/image", self._upload)])
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, ADDRESS, self.port, reuse_address=True).start()

    async def _end(self):
        await self._cut()
        await self.runner.cleanup()

    # --- what a test does ---

    def cut(self):
        """Break the websockets, without the farewell that the protocol has."""
        self.do(self._cut())

    async def _cut(self):
        for _, request in self.sockets.values():
            request.transport.abort()
        self.sockets.clear()

    def begin(self):
        """The next prompt runs now; returns its id."""
        item = self.pending.pop(0)
        self.running.append(item)
        self.send("execution_start", {}, item)
        return item[1]

    def send(self, kind, data, item=None):
        """An event about the running prompt, to its client; bytes go without an id."""
        item = item or self.running[0]
        if not self.deaf and item[3] in self.sockets:
            socket = self.sockets[item[3]][0]
            self.do(socket.send_bytes(data) if kind == "binary"
                    else socket.send_json({"type": kind, "data": {**data, "prompt_id": item[1]}}))

    def end(self, kind="execution_success", **data):
        """The running prompt ends so; it showed a picture if it succeeded."""
        item = self.running[0]
        messages = [["execution_cached", {"nodes": ["7"], "prompt_id": item[1]}], [kind, {**data, "prompt_id": item[1]}]]
        outputs = {"1": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}
        self.send(kind, data)
        self.running.remove(item)
        self.history[item[1]] = {"outputs": outputs if kind == "execution_success" else {}, "status": {
            "completed": kind == "execution_success", "messages": messages}}

    @web.middleware
    async def _proxy(self, request, handler):
        if self.refuse:
            self.refused += 1
            return web.Response(status=502)
        return await handler(request)

    # --- what ComfyUI does ---

    async def _socket(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client = request.query["clientId"]
        self.sockets[client] = (socket, request)
        self.clients_seen.append(client)
        await socket.send_json({"type": "status", "data": {}})
        async for _ in socket:
            pass
        if self.sockets.get(client) == (socket, request):
            del self.sockets[client]
        return socket

    async def _prompt(self, request):
        body = await request.json()
        fault = self.lose.pop("/prompt", None)
        if fault == "request":
            return self._drop(request)
        if not body["prompt"]:
            return web.json_response({"error": {"message": "no nodes"}, "node_errors": {}}, status=400)
        self.number += 1
        self.posts.append(body["prompt_id"])
        self.pending.append([-self.number if body.get("front") else self.number, body["prompt_id"], body["prompt"],
                             body["client_id"]])
        if fault == "answer":
            return self._drop(request)
        return web.json_response({"prompt_id": body["prompt_id"], "number": self.number, "node_errors": {}})

    def _drop(self, request):
        request.transport.abort()
        return web.Response()

    async def _queue(self, request):
        return web.json_response({"queue_running": self.running, "queue_pending": self.pending})

    async def _history(self, request):
        prompt_id = request.match_info["id"]
        return web.json_response({prompt_id: self.history[prompt_id]} if prompt_id in self.history else {})

    async def _delete(self, request):
        gone = (await request.json())["delete"]
        self.pending = [item for item in self.pending if item[1] not in gone]
        return web.Response()

    async def _interrupt(self, request):
        prompt_id = (await request.json())["prompt_id"]
        if any(item[1] == prompt_id for item in self.running):
            threading.Thread(target=self.end, args=("execution_interrupted",)).start()
        return web.Response()

    async def _upload(self, request):
        form = await request.post()
        self.uploads.append((form["image"].filename, form["image"].file.read(), form["overwrite"]))
        return web.json_response({"name": f"{form['image'].filename} (1)", "subfolder": "", "type": "input"})
