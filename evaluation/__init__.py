"""How good pictures and clips are: measures that need no ComfyUI, and in `drawn/` the embedded models' world with its
judges."""
