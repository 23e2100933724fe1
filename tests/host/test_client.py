"""The client beside the real ComfyUI: a connection that breaks, a process that is killed, and what the stand-in of
tests/headless only imitates."""

import json
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from sanacog.headless.client import Client, preview
from sanacog.headless.launcher import ADDRESS, Server

ROOT = Path(__file__).resolve().parents[2]


def quickstart(seed, steps):
    prompt = json.loads((ROOT / "workflows" / "api" / "sana_quickstart.json").read_text("utf-8"))
    prompt["6"]["inputs"] |= {"width": 128, "height": 128}
    prompt["7"]["inputs"] |= {"seed": seed, "steps": steps}
    return prompt


class Wire:
    """Between a client and the server; `cut` breaks every connection at once."""

    def __init__(self, url):
        self.there = (ADDRESS, int(url.rpartition(":")[2]))
        self.listener = socket.create_server((ADDRESS, 0))
        self.url = f"http://{ADDRESS}:{self.listener.getsockname()[1]}"
        self.open = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(self.there)
            self.open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one, other):
        try:
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut(self):
        for end in self.open:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already
        self.open.clear()


@pytest.fixture
def wire(server):
    wire = Wire(server.url)
    yield wire
    wire.listener.close()
    wire.cut()


def at_step(number, call):
    """on_event that makes the call once, at this step."""
    calls = [call]

    def on_event(kind, data):
        if kind == "progress" and data["value"] >= number and calls:
            calls.pop()()
    return on_event


def test_a_cut_connection(server, wire):
    """The prompt goes on at the server, its later steps and its picture come in, and it is run once."""
    before = server.get("/history")
    with Client(wire.url) as client:
        result = client.run(quickstart(501, 15), on_event=at_step(3, wire.cut))
        assert Image.open(BytesIO(client.file(*result.files()))).size == (128, 128)
    kinds = [kind for kind, _ in result.events]
    assert kinds.count("reconnected") == 1 and result.end == "execution_success"
    assert set(server.get("/history")) - set(before) == {result.prompt_id}
    pictures = [preview(data) for data in result.of_type("binary")]
    assert all(Image.open(BytesIO(one.image)).format.lower() == one.format for one in pictures) and pictures


def test_interrupt_stops_one_prompt(server):
    with Client(server.url) as client, Client(server.url) as other:
        long, waiting, last = client.queue(quickstart(502, 5000)), other.queue(quickstart(503, 1)), client.queue(
            quickstart(504, 1))
        while client.position(long):  # it has not begun yet
            time.sleep(0.01)
        assert [client.position(one) for one in (long, waiting, last)] == [0, 1, 2]
        assert client.interrupt(last) and client.position(last) is None
        assert client.wait(last, 60).end == "execution_interrupted"
        stopped = client.wait(long, 120, at_step(2, lambda: client.interrupt(long)))
        assert stopped.end == "execution_interrupted" and not stopped.files()
        assert len(other.wait(waiting, 120).files()) == 1
        assert not client.interrupt(long)
        # And as a client learns it that has no events of the prompt.
        assert other.wait(long, 30).end == "execution_interrupted"


def test_upload(server):
    pictures = {}
    for colour in ("red", "blue"):
        data = BytesIO()
        Image.new("RGB", (48, 32), colour).save(data, "PNG")
        pictures[colour] = data.getvalue()
    names = [server.upload(pictures[colour], name="up load.png") for colour in ("red", "red", "blue")]
    assert names == ["up load.png", "up load.png", "up load (1).png"]
    assert (server.base / "input" / names[2]).read_bytes() == pictures["blue"]
    image, = server.run_prompt({"1": {"class_type": "LoadImage", "inputs": {"image": names[2]}},
                                "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}).images
    assert image.shape == (32, 48, 3) and tuple(image[0, 0]) == (0, 0, 255)
    server.upload(pictures["blue"], name="up load.png", overwrite=True)
    assert (server.base / "input" / "up load.png").read_bytes() == pictures["blue"]


def test_a_killed_server_that_is_started_again(comfyui_path, tmp_path):
    """What ran is forgotten, and queued again by `run`."""
    with Server(comfyui_path, tmp_path, arguments=["--disable-api-nodes"]) as server, Client(server.url, 120) as client, \
            ThreadPoolExecutor() as aside:
        under_way = threading.Event()
        running = aside.submit(client.run, quickstart(505, 20), 300, at_step(2, under_way.set))
        assert under_way.wait(120)
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
        assert not running.done()
        server.start()
        result = running.result(300)
        assert result.end == "execution_success" and len(client.file(*result.files())) > 1000
        assert list(client.get("/history")) == [result.prompt_id]
