"""The rooms that import comfy: they turn cores and files into ComfyUI's own MODEL, CLIP, VAE and SAMPLER."""
