"""The rooms that import comfy: they turn cores and files into ComfyUI's own MODEL, CLIP, VAE and SAMPLER. A wing a
family; what two wings need is here beside them."""
