"""Training without ComfyUI: of the embedded models (embedded/)."""
