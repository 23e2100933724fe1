"""The commands of run.py, one file each, with `main(arguments) -> exit status`. They run inside the environment that
headless/installation.py makes; nothing imports this room."""
