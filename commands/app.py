"""python run.py app: a web page in front of a ComfyUI, one that it starts or a running one."""

import argparse
import os
from pathlib import Path

from ..headless import installation
from ..headless.client import Client
from ..headless.launcher import LaunchError, Server, free_port, give_inputs, is_free, make_base

ROOT = Path(__file__).resolve().parents[1]
USUAL_PORT = 7860


def parser():
    parser = argparse.ArgumentParser(prog="run.py app", description="A web page in front of a ComfyUI: pictures by Sana, videos by "
                                     "CogVideoX. It starts one, whose models lie in output/comfyui/models as those of `serve`.")
    parser.add_argument("--server", metavar="URL", help="a ComfyUI that runs already, such as http://127.0.0.1:8188, instead")
    parser.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS",
                        help="address to answer at; 0.0.0.0 lets other machines in (default: %(default)s)")
    parser.add_argument("--port", type=int, help=f"port of the page (default: {USUAL_PORT}, or any free one)")
    parser.add_argument("--auth", type=Path, metavar="FILE",
                        help="ask for a name and a password: lines NAME:PASSWORD. So does the environment's SANACOG_AUTH")
    parser.add_argument("--share", action="store_true", help="let Gradio's servers pass the page on to the world")
    parser.add_argument("--write-space", type=Path, metavar="FOLDER",
                        help="write a folder that is a Hugging Face Space of the embedded models on free hardware, and end")
    return parser


def main(arguments):
    """Show the page until Ctrl-C or a TERM; returns the exit status. Raises SetupError, LaunchError, OSError."""
    options = parser().parse_args(arguments)
    if options.write_space:
        return write_space(options.write_space)
    accounts = accounts_of(options.auth, os.environ.get("SANACOG_AUTH", ""))
    port = options.port or (USUAL_PORT if is_free(USUAL_PORT) else free_port())
    if not is_free(port):
        raise LaunchError(f"Port {port} is taken by another program; name another one with --port.")
    if options.server:
        return serve(options.server, options, port, accounts)
    base = make_base(ROOT / "output" / "comfyui")
    give_inputs(base)
    print("Starting ComfyUI ...", flush=True)
    with Server(installation.host(), base, arguments=["--preview-method", "auto"]) as server:
        return serve(server.url, options, port, accounts)


def write_space(folder):
    from ..app import space

    try:
        names = space.write(folder)
    except ValueError as error:
        raise LaunchError(str(error)) from None
    print(f"{folder} has {', '.join(names)}.\nPush it to a repository of the kind Space, with Git LFS for *.safetensors.")
    return 0


def serve(url, options, port, accounts):
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from ..app.offers import Offers
    from ..app.page import build, look

    with Client(url) as client:
        try:
            page = build(client, Offers(client.get("/object_info")))
        except ValueError as error:
            raise LaunchError(str(error)) from None
        try:
            _, address, shared = page.launch(server_name=options.listen, server_port=port, auth=accounts, share=options.share,
                                             prevent_thread_lock=True, quiet=True, show_error=False, ssr_mode=False, **look())
            print(f"\nThe page is at {address}{f' and {shared}' if shared else ''}. Ctrl-C ends it.", flush=True)
            page.block_thread()
        except KeyboardInterrupt:
            pass
        finally:
            page.close(verbose=False)
    return 0


def accounts_of(file, text):
    """[(name, password)] of a file, or of SANACOG_AUTH, in lines NAME:PASSWORD; None of neither. Raises LaunchError."""
    where = "SANACOG_AUTH"
    if file:
        where, text = file, ""
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LaunchError(f"--auth {file}: {getattr(error, 'strerror', None) or error}.") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    accounts = [tuple(line.split(":", 1)) for line in lines]
    if (file and not lines) or any(len(account) != 2 or not all(account) for account in accounts):
        raise LaunchError(f"{where} has to have lines NAME:PASSWORD.")
    return accounts or None
