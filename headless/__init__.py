"""A ComfyUI without a window: its installation, its process, a client of its HTTP API. Standard library only."""
