"""python run.py serve: ComfyUI in the browser with this pack in it. More arguments go to ComfyUI's main.py."""

import webbrowser
from pathlib import Path

from ..headless import installation, launcher

ROOT = Path(__file__).resolve().parents[1]


def main(arguments):
    """Run until ComfyUI ends or Ctrl-C; returns the exit status. Raises SetupError, LaunchError."""
    host = installation.host()
    port, arguments = chosen_port(arguments)
    base = launcher.make_base(ROOT / "output" / "comfyui")
    launcher.give_inputs(base)
    server = launcher.Server(host, base, port, ["--preview-method", "auto", *arguments], log="terminal")
    try:
        with server:
            print(f"\nComfyUI runs at {server.url}; models go to {base / 'models'}. Ctrl-C ends it.", flush=True)
            webbrowser.open(server.url)
            return server.process.wait()
    except KeyboardInterrupt:
        return 0


def chosen_port(arguments, usual=8188):
    """(port, the other arguments): --port's, else ComfyUI's usual one where it is free. Raises LaunchError."""
    if "--port" not in arguments:
        return usual if launcher.is_free(usual) else launcher.free_port(), arguments
    at = arguments.index("--port")
    try:
        return int(arguments[at + 1]), arguments[:at] + arguments[at + 2:]
    except (IndexError, ValueError):
        raise launcher.LaunchError("--port needs a number.") from None
