"""Several headless ComfyUIs behind one address, with Ray Serve: pip install "ray[serve]==2.60.0" where ComfyUI runs, then

    python deploy/ray_serve.py --replicas 2 --base /my/data                     # one GPU each; --cpu: none
    curl -d '{"prompt": {...}}' http://127.0.0.1:8000/prompt                    # as ComfyUI takes it; answers at the end:
        {"prompt_id": ..., "replica": ..., "seconds": 3.1, "files": [{"filename": "a_00001_.png", "url": "/file/..."}]}
    curl -O http://127.0.0.1:8000/file/...
    curl http://127.0.0.1:8000/status                                           # {"replicas": {"RUNNING": 2}, "prompts": 5}

A prompt goes to a ComfyUI that has nothing to do, or waits for the first one. A ComfyUI that ends is started again, and
what it was at goes to another. A caller that hangs up stops its prompt. All of them share models/ and input/ of the base
folder. One machine, or a Ray cluster that has the pack and the base folder at the same paths everywhere.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import sys
import tempfile
import threading
import uuid
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse
from ray import serve
from ray.exceptions import RayActorError

ROOT = Path(__file__).resolve().parents[1]
ATTEMPTS = 3  # on as many ComfyUIs; a prompt that ends each of them is to blame itself

web = FastAPI()


def room(name):
    """A room of the pack, in the process that this runs in: Ray's do not know the pack."""
    spec = importlib.util.spec_from_file_location("sanacog_run", ROOT / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    return run.room(name)


@serve.deployment(max_ongoing_requests=1, max_constructor_retry_count=2, health_check_period_s=2,
                  graceful_shutdown_timeout_s=30)
class ComfyUI:
    """A process that lives and dies with one ComfyUI, and gets one prompt at a time."""

    def __init__(self, host, shared, bases, arguments):
        """shared: base folder whose models/ and input/ all use. bases: where each gets a base folder of its own: in one
        output/ two of them would give two pictures the same number."""
        self.name = serve.get_replica_context().replica_id.unique_id
        base = Path(bases) / self.name
        base.mkdir()
        for folder in ("models", "input"):
            (base / folder).symlink_to(Path(shared) / folder, target_is_directory=True)
        self.server = room("headless.launcher").Server(host, base, arguments=["--disable-api-nodes", *arguments])
        self.server.start()
        self.client = room("headless.client").Client(self.server.url, patience_s=0)

    def check_health(self):
        if self.server.process.poll() is not None:
            raise RuntimeError(f"ComfyUI has ended: {self.server.last_words()}")

    def __del__(self):  # Serve calls it when it ends a replica that is well
        if hasattr(self, "server"):
            self.server.stop()

    async def run(self, prompt_id, body):
        """(HTTP status, answer, {path: bytes of a file})"""
        try:
            return await asyncio.to_thread(self._run, prompt_id, body)
        except asyncio.CancelledError:
            await asyncio.to_thread(self.client.interrupt, prompt_id)
            raise

    def _run(self, prompt_id, body):
        client = room("headless.client")
        try:
            result = self.client.run(**{**body, "prompt_id": prompt_id}, timeout_s=float("inf"))
            files = {"/".join(filter(None, (prompt_id, entry["subfolder"], entry["filename"]))): self.client.file(entry)
                     for entry in result.files()}
        except client.Refused as error:
            return error.status, error.answer, {}
        except client.Failed as error:
            return 500, {"prompt_id": prompt_id, "replica": self.name, "error": str(error)}, {}
        except ConnectionError as error:
            print(f"ComfyUI has gone: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # Serve sees that at once, takes no more prompts here and starts another
        return 200, {"prompt_id": prompt_id, "replica": self.name, "seconds": round(result.seconds, 3)}, files


@serve.deployment(max_ongoing_requests=10_000)
@serve.ingress(web)
class Front:
    """What the world talks to. It keeps the files, which outlive the ComfyUI that made them."""

    def __init__(self, comfyui, output):
        self.comfyui, self.output, self.prompts = comfyui, Path(output).resolve(), 0

    @web.post("/prompt")
    async def prompt(self, request: Request):
        try:
            body = await request.json()
        except ValueError:
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("prompt"), dict):
            return JSONResponse({"error": 'Send JSON {"prompt": a workflow in API form}.'}, 400)
        body = {name: body[name] for name in ("prompt", "extra_data") if name in body}
        prompt_id = str(uuid.uuid4())
        self.prompts += 1
        try:
            status, answer, files = await self._run(prompt_id, body)
        finally:
            self.prompts -= 1
        if status == 200:
            answer["files"] = [{"filename": Path(path).name, "url": f"/file/{path}"} for path in files]
        await asyncio.to_thread(self._keep, files)
        return JSONResponse(answer, status)

    async def _run(self, prompt_id, body):
        for _ in range(ATTEMPTS):
            try:
                return await self.comfyui.run.remote(prompt_id, body)
            except RayActorError:
                continue
        return 500, {"prompt_id": prompt_id, "error": f"{ATTEMPTS} ComfyUIs ended while they ran this prompt."}, {}

    def _keep(self, files):
        for path, data in files.items():
            place = self.output / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)

    @web.get("/file/{path:path}")
    async def file(self, path: str):
        place = (self.output / path).resolve()
        if not place.is_relative_to(self.output) or not place.is_file():
            return JSONResponse({"error": "There is no such file."}, 404)
        return FileResponse(place)

    @web.get("/status")
    async def status(self):
        """replicas: how many ComfyUIs in which state. prompts: that run or wait."""
        everything = await asyncio.to_thread(serve.status)
        deployments = [one for app in everything.applications.values() for one in app.deployments.items()]
        return {"replicas": dict(dict(deployments)["ComfyUI"].replica_states), "prompts": self.prompts}


def parser():
    parser = argparse.ArgumentParser(description="Several headless ComfyUIs behind one address. More arguments go to "
                                     "ComfyUI's main.py.")
    parser.add_argument("--replicas", type=int, metavar="N", help="how many (default: one for each GPU, else 1)")
    parser.add_argument("--gpus", type=float, default=1, help="GPUs of each (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--address", default="127.0.0.1", help="nobody is asked for a password (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--base", type=Path, default=ROOT / "output" / "comfyui", metavar="DIR",
                        help="ComfyUI's base folder, with models/ and input/ (default: that of run.py serve)")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "ray", metavar="DIR",
                        help="folder for what was drawn (default: output/ray)")
    return parser


def main(arguments):
    """Serve until a signal ends it; returns the exit status. Raises SetupError, ValueError, RuntimeError."""
    options, rest = parser().parse_known_args(arguments)
    host = room("headless.installation").host()
    if not room("headless.launcher").is_free(options.port):
        raise ValueError(f"Port {options.port} is taken by another program; name another one with --port.")
    for folder in (options.base / "models", options.base / "input", options.output):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sanacog-ray-") as bases:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="WARNING")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does; Ray's own handler would abort
        try:
            count, gpus = share(options, ray.cluster_resources().get("GPU", 0))
            serve.start(http_options={"host": options.address, "port": options.port})
            comfyui = ComfyUI.options(num_replicas=count, ray_actor_options={"num_cpus": 0, "num_gpus": gpus}).bind(
                str(host), str(options.base.resolve()), bases, rest if gpus else ["--cpu", *rest])
            front = Front.options(ray_actor_options={"num_cpus": 0})
            print(f"Starting {count} ComfyUIs ...", flush=True)
            try:
                serve.run(front.bind(comfyui, str(options.output)))
            except RuntimeError as error:
                raise RuntimeError(f"ComfyUI does not start: {last_words(Path(bases)) or error}") from error
            print(f"{json.dumps({'replicas': count, 'gpus': gpus})} at http://{options.address}:{options.port}", flush=True)
            threading.Event().wait()
        finally:
            serve.shutdown()
            ray.shutdown()


def last_words(bases):
    """The last line of the ComfyUI that printed last."""
    logs = sorted(bases.glob("*/comfyui.log"), key=lambda log: log.stat().st_mtime)
    lines = logs[-1].read_text("utf-8", errors="replace").split("\n") if logs else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def share(options, there):
    """(how many ComfyUIs, GPUs of each) on a machine or cluster with so many GPUs. Raises ValueError."""
    gpus = 0 if options.cpu or not there else options.gpus
    count = options.replicas or (max(1, int(there // gpus)) if gpus else 1)
    if count * gpus > there:
        raise ValueError(f"{count} ComfyUIs with {gpus:g} GPUs each: there are {there:g}. Take fewer --replicas, fewer "
                         "--gpus (0.5: two share one), or --cpu.")
    return count, gpus


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except (room("headless.installation").SetupError, ValueError, RuntimeError) as error:
        sys.exit(f"{error}")
