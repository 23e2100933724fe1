"""A ComfyUI without a window: its installation, its process, a client of its HTTP API, a browser that looks at it. Standard
library only, but for Playwright in chromium.py."""
