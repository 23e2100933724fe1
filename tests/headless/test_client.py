"""The client, beside a stand-in for ComfyUI whose connections break, whose answers get lost and which restarts."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sanacog.headless import client as module
from sanacog.headless.client import Client, Failed, Forgotten, Refused, preview
from sanacog.headless.launcher import ADDRESS, free_port

from .stand_in import StandIn

PROMPT = {"1": {"class_type": "PreviewImage", "inputs": {}}}


@pytest.fixture
def stand_in():
    stand_in = StandIn()
    yield stand_in
    stand_in.stop()


@pytest.fixture
def client(stand_in):
    with Client(stand_in.url, patience_s=10) as client:
        yield client


@pytest.fixture
def aside():
    """Call something in another thread; its result is .result(10)."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def until(condition):
    """What the condition gives, as soon as that is true."""
    end = time.monotonic() + 10
    while not (found := condition()):
        assert time.monotonic() < end, "this does not happen"
        time.sleep(0.01)
    return found


def started(stand_in, aside, call, *arguments, **named):
    """`call` in another thread, and the prompt that it queues running: its future."""
    future = aside(call, *arguments, **named)
    until(lambda: stand_in.pending or future.done())
    stand_in.begin()
    return future


def kinds(result):
    """Of its events, in order. The status comes once a connection, at its own time."""
    return [kind for kind, _ in result.events if kind != "status"]


# --- while all goes well ---


def test_run(stand_in, client, aside):
    seen = []
    future = started(stand_in, aside, client.run, PROMPT, on_event=lambda kind, data: seen.append(kind))
    stand_in.send("progress", {"value": 1, "max": 2})
    stand_in.end()
    result = future.result(10)
    assert result.end == "execution_success" and [entry["filename"] for entry in result.files()] == ["a.png"]
    assert kinds(result) == ["execution_start", "progress", "execution_success"]
    assert seen == [kind for kind, _ in result.events]
    assert stand_in.posts == [result.prompt_id] and not client.inboxes


def test_refusal_and_failure(stand_in, client, aside):
    with pytest.raises(Refused, match="HTTP 400: no nodes"):
        client.run({})
    future = started(stand_in, aside, client.run, PROMPT)
    stand_in.end("execution_error", node_type="KSampler", exception_message="no memory\n")
    with pytest.raises(Failed, match="^KSampler: no memory$"):
        future.result(10)
    assert not client.inboxes


def test_two_prompts_of_one_client_get_their_own_events(stand_in, client):
    """Waited for in the other order; previews have no id."""
    first, second = client.queue(PROMPT), client.queue(PROMPT)
    for number in (1, 2):
        stand_in.begin()
        stand_in.send("binary", bytes([number]))
        stand_in.end()
    for prompt_id, number in ((second, 2), (first, 1)):
        result = client.wait(prompt_id, 10)
        assert kinds(result) == ["execution_start", "binary", "execution_success"]
        assert result.of_type("binary") == [bytes([number])]


def test_two_threads_and_two_clients_at_once(stand_in, client, aside):
    with Client(stand_in.url) as other:
        futures = [aside(one.run, PROMPT, 10) for one in (client, client, other)]
        until(lambda: len(stand_in.pending) == 3)
        ids = []
        for _ in range(3):
            ids.append(stand_in.begin())
            stand_in.end()
        results = [future.result(10) for future in futures]
    assert sorted(result.prompt_id for result in results) == sorted(ids)
    assert all(kinds(result) == ["execution_start", "execution_success"] for result in results)


def test_place_in_the_queue(stand_in, client):
    first, second, third = client.queue(PROMPT), client.queue(PROMPT), client.queue(PROMPT, front=True)
    assert [client.position(one) for one in (third, first, second)] == [1, 2, 3]
    stand_in.begin()
    assert [client.position(one) for one in (first, third, second)] == [0, 1, 2]
    stand_in.end()
    assert client.position(first) is None and client.history(first)["status"]["completed"]
    assert client.history(second) is None


def test_interrupt(stand_in, client, aside):
    first, second, third = (client.queue(PROMPT) for _ in range(3))
    stand_in.begin()
    assert client.interrupt(second) and [item[1] for item in stand_in.pending] == [third]
    assert stand_in.running, "another prompt was stopped"
    assert client.wait(second, 10).end == "execution_interrupted"
    assert client.interrupt(first) and client.wait(first, 10).end == "execution_interrupted"
    assert not client.interrupt(first)
    assert client.position(third) == 1


def test_time_out_and_wait_again(stand_in, client):
    prompt_id = client.queue(PROMPT)
    with pytest.raises(TimeoutError, match="after 0.1 s"):
        client.wait(prompt_id, 0.1)
    stand_in.begin()
    stand_in.end()
    assert client.wait(prompt_id, 10).end == "execution_success"


def test_upload(stand_in, client, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"\r\n--\x00")
    assert client.upload(tmp_path / "cat.png") == "cat.png (1)"  # the server's name
    client.upload(str(tmp_path / "cat.png"), name="dog.png", overwrite=True)
    client.upload(b"bytes", name="ï.png")
    assert stand_in.uploads == [("cat.png", b"\r\n--\x00", "false"), ("dog.png", b"\r\n--\x00", "true"),
                              ("ï.png", b"bytes", "false")]
    with pytest.raises(ValueError, match="need a name"):
        client.upload(b"bytes")
    with pytest.raises(FileNotFoundError, match="none.png"):
        client.upload(tmp_path / "none.png")


def test_previews():
    metadata = json.dumps({"image_type": "image/png", "node_id": "3"}).encode()
    new = preview(b"\0\0\0\4" + len(metadata).to_bytes(4, "big") + metadata + b"picture")
    assert (new.format, new.image, new.metadata["node_id"]) == ("png", b"picture", "3")
    assert preview(b"\0\0\0\1\0\0\0\1picture") == module.Preview("jpeg", b"picture")
    assert preview(b"\0\0\0\1\0\0\0\2picture") == module.Preview("png", b"picture")
    assert preview(b"\0\0\0\3\0\0\0\1text") is None


# --- when the connection breaks ---


def broken(stand_in, aside, client, call, end):
    """`call` with a prompt whose connection breaks; `end` is done before there is one again. Its future."""
    future = started(stand_in, aside, call, PROMPT, 10)
    stand_in.refuse = True
    stand_in.cut()
    end()
    until(lambda: stand_in.refused > 1)
    stand_in.refuse = False
    return future


def test_a_prompt_that_ends_meanwhile(stand_in, client, aside):
    result = broken(stand_in, aside, client, client.run, stand_in.end).result(10)
    assert result.end == "execution_success" and len(result.files()) == 1 and result.cached == ["7"]
    assert kinds(result) == ["execution_start", "reconnected"]
    assert len(stand_in.posts) == 1 and set(stand_in.clients_seen) == {client.id}


def test_a_prompt_that_fails_meanwhile(stand_in, client, aside):
    future = broken(stand_in, aside, client, client.run,
                    lambda: stand_in.end("execution_error", node_type="KSampler", exception_message="no memory"))
    with pytest.raises(Failed, match="^KSampler: no memory$"):
        future.result(10)


def test_a_prompt_that_goes_on(stand_in, client, aside):
    future = broken(stand_in, aside, client, client.run, lambda: None)
    until(lambda: client.id in stand_in.sockets)
    stand_in.send("progress", {"value": 2, "max": 2})
    stand_in.end()
    assert kinds(future.result(10)) == ["execution_start", "reconnected", "progress", "execution_success"]


def test_a_restarted_server_forgets(stand_in, client, aside):
    """`run` queues the prompt again, once; `wait` says so."""
    def restart():
        stand_in.stop()
        stand_in.start()

    waiting = started(stand_in, aside, lambda: client.wait(client.queue(PROMPT), 10))
    restart()
    with pytest.raises(Forgotten, match="it was restarted"):
        waiting.result(10)
    running = started(stand_in, aside, client.run, PROMPT, 20)
    restart()
    prompt_id, = [item[1] for item in until(lambda: stand_in.pending)]
    stand_in.begin()
    stand_in.end()
    assert running.result(10).prompt_id == prompt_id and stand_in.posts.count(prompt_id) == 2

    unlucky = started(stand_in, aside, client.run, PROMPT, 20)
    restart()
    until(lambda: stand_in.pending)
    restart()
    with pytest.raises(Forgotten):
        unlucky.result(10)
    assert not client.inboxes


def test_what_somebody_deleted_is_not_queued_again(stand_in, client, aside, monkeypatch):
    monkeypatch.setattr(module, "QUIET_S", 0.1)
    future = aside(client.run, PROMPT, 10)
    until(lambda: stand_in.pending)
    stand_in.pending.clear()
    with pytest.raises(Forgotten, match="deleted"):
        future.result(10)
    assert len(stand_in.posts) == 1


def test_lost_events(stand_in, client, aside, monkeypatch):
    """A server that takes the new connection for the old one, which it closes, sends none."""
    monkeypatch.setattr(module, "QUIET_S", 0.1)
    stand_in.deaf = True
    future = started(stand_in, aside, client.run, PROMPT, 10)
    stand_in.end()
    assert len(future.result(10).files()) == 1


def test_a_proxy_without_its_server_is_no_answer(stand_in, client, aside, monkeypatch):
    monkeypatch.setattr(module, "QUIET_S", 0.1)
    waiting = started(stand_in, aside, client.run, PROMPT, 10)
    stand_in.refuse = True
    sending = aside(client.queue, PROMPT)
    time.sleep(0.5)
    assert not waiting.done() and not sending.done()
    stand_in.refuse = False
    stand_in.end()
    assert waiting.result(10).files() and client.position(sending.result(10)) == 1


@pytest.mark.parametrize("fault", ["request", "answer"])
def test_a_prompt_whose_sending_is_lost_is_queued_once(stand_in, client, fault):
    stand_in.lose["/prompt"] = fault
    prompt_id = client.queue(PROMPT)
    assert stand_in.posts == [prompt_id] and [item[1] for item in stand_in.pending] == [prompt_id]


def test_a_server_that_starts_again_takes_the_prompt(stand_in, client, aside):
    stand_in.stop()
    future = aside(client.queue, PROMPT)
    time.sleep(0.3)
    stand_in.start()
    assert future.result(10) in [item[1] for item in stand_in.pending]


def test_patience_ends(stand_in, aside):
    with Client(stand_in.url, patience_s=0.5) as client:
        future = started(stand_in, aside, client.run, PROMPT)
        stand_in.stop()
        with pytest.raises(ConnectionError, match="ComfyUI has gone: .*Connect"):
            future.result(10)
        with pytest.raises(ConnectionError, match="Connection refused"):
            client.queue(PROMPT)


def test_closing_ends_the_waiting(stand_in, client, aside, monkeypatch):
    monkeypatch.setattr(module, "QUIET_S", 1000)  # it would notice then, too
    future = started(stand_in, aside, client.run, PROMPT)
    client.close()
    with pytest.raises(ConnectionError, match="closed"):
        future.result(10)


def test_no_server_and_no_address(aside):
    before = set(threading.enumerate())
    with pytest.raises(ConnectionError, match="^No ComfyUI answers at http://127.0.0.1:.*"):
        aside(Client, f"http://{ADDRESS}:{free_port()}", patience_s=20).result(10)
    with pytest.raises(ValueError, match="write it as http://127.0.0.1:8188"):
        Client("127.0.0.1:8188")
    until(lambda: not [thread for thread in set(threading.enumerate()) - before if "_listen" in thread.name])


def test_the_file_works_alone(stand_in, tmp_path):
    """Copied elsewhere, without the pack."""
    (tmp_path / "comfy_client.py").write_bytes(Path(module.__file__).read_bytes())
    script = f"from comfy_client import Client\nwith Client({stand_in.url!r}) as client: print(client.queue({PROMPT!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0 and [done.stdout.strip()] == stand_in.posts, done.stderr
