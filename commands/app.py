"""python run.py app: a web page that draws with Sana and CogVideoX, and a ComfyUI behind it."""

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from ..headless import installation, launcher
from ..headless.client import Client
from ..headless.launcher import LaunchError

BASE = installation.ROOT / "output" / "comfyui"  # as for `serve`: models that are put there are found by both
PORT = 7860


def parser():
    parser = argparse.ArgumentParser(prog="run.py app", description="A web page that draws with Sana and CogVideoX, and a "
                                     f"headless ComfyUI behind it. Models go to {BASE / 'models'}; the embedded ones are there.")
    parser.add_argument("--server", metavar="URL", help="a running ComfyUI with this pack, instead of one that is started; "
                        "start it with --preview-method auto to see pictures grow")
    parser.add_argument("--listen", default=launcher.ADDRESS, metavar="ADDRESS",
                        help="address to be reached at; 0.0.0.0 for every one of this machine (default: %(default)s)")
    parser.add_argument("--port", type=int, help=f"default: {PORT}, or a free one")
    parser.add_argument("--auth", type=Path, metavar="FILE", help="who may come in, a line each: name:password. Or the same in "
                        "the environment as SANACOG_AUTH")
    parser.add_argument("--share", action="store_true", help="also a public address for three days, through Gradio's servers")
    parser.add_argument("--write-space", type=Path, metavar="DIR", help="write a Hugging Face Space into a new folder, and end")
    return parser


def main(arguments):
    """Run until Ctrl-C or ComfyUI's end; returns the exit status. Raises SetupError, LaunchError, OSError."""
    options = parser().parse_args(arguments)
    if options.write_space:
        from ..app import space

        space.write(options.write_space, installation.host())
        print(f"{options.write_space}: a Space. Make one with the Gradio SDK on huggingface.co and push this folder to it.")
        return 0
    port, people = chosen_port(options.port), people_of(options.auth)
    if options.server and not options.server.startswith(("http://", "https://")):
        raise LaunchError(f"--server {options.server}: write the address as http://127.0.0.1:8188.")
    if not people and (options.share or options.listen not in (launcher.ADDRESS, "localhost", "::1")):
        print("Anybody who reaches this address can draw; --auth FILE asks for a name and a password.", file=sys.stderr)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sanacog-page-")))
        prepare_gradio(folder)
        server = None if options.server else stack.enter_context(started())
        page = stack.enter_context(opened(server.url if server else options.server, folder))
        try:
            show(page, options.listen, port, people, options.share)
            public = f"\nPublic: {page.share_url}" if options.share else ""
            print(f"The page is at {page.local_url}; Ctrl-C ends it.{public}", flush=True)
            while server is None or server.process.poll() is None:
                time.sleep(0.5)
            raise LaunchError(f"ComfyUI has ended: {server.last_words()}")
        except KeyboardInterrupt:
            return 0
        finally:
            page.close(verbose=False)


def chosen_port(port):
    """The one asked for, else the usual one where it is free. Raises LaunchError."""
    if port is None:
        return PORT if launcher.is_free(PORT) else launcher.free_port()
    if not 0 < port < 65536:
        raise LaunchError(f"--port {port}: a port is a number from 1 to 65535.")
    if not launcher.is_free(port):
        raise LaunchError(f"Port {port} is taken by another program; name another one with --port.")
    return port


def people_of(file):
    """[(name, password)] of a file, or of SANACOG_AUTH; None when there is neither. Raises LaunchError."""
    name = file or "SANACOG_AUTH"
    try:
        text = file.read_text("utf-8") if file else os.environ.get("SANACOG_AUTH", "")
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"--auth {file} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}.") from None
    people = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            person, colon, password = line.strip().partition(":")
            if not (person and colon and password):
                raise LaunchError(f"{name}, line {number}: a line is name:password.")
            people.append((person, password))
    if file and not people:
        raise LaunchError(f"--auth {file} is empty; write a line name:password for each who may come in.")
    return people or None


def prepare_gradio(folder):
    """Before it is imported: it asks nobody whether there is a newer one, and keeps its files in a folder of ours."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder / "gradio"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    ours = f"{launcher.ADDRESS},localhost"  # a proxy is for the world outside
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), ours)))


def started():
    base = launcher.make_base(BASE)
    launcher.give_inputs(base)
    print("Starting ComfyUI ...", flush=True)
    return launcher.Server(installation.host(), base, arguments=["--disable-api-nodes", "--preview-method", "auto"])


class opened:
    """The page over the ComfyUI at `url`, as a context. Raises LaunchError when it does not answer or lacks the pack."""

    def __init__(self, url, folder):
        self.url, self.folder = url, folder

    def __enter__(self):
        from ..app.offers import Offers
        from ..app.page import Studio, build

        try:
            self.client = Client(self.url)
        except ConnectionError as error:
            raise LaunchError(f"{error} Start ComfyUI first, or leave --server away.") from None
        try:
            offers = Offers(self.client.get)
        except ValueError as error:
            self.client.close()
            raise LaunchError(f"{self.url}: {error}") from None
        results = self.folder / "results"
        results.mkdir()
        return build(Studio(self.client, offers, results))

    def __exit__(self, *error):
        self.client.close()


def show(page, address, port, people=None, share=False):
    from ..app.look import CSS, HEAD, theme

    page.launch(server_name=address, server_port=port, auth=people, share=share, prevent_thread_lock=True, quiet=True,
                theme=theme(), css=CSS, head=HEAD, show_error=True, max_file_size="200mb", ssr_mode=False)
