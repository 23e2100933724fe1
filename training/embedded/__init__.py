"""Training of the embedded tiny models: what is drawn for it, the networks that no user trains, and how each is measured.

What people train too goes through the trainer (configured.py). The rest, and all measuring, imports torch, safetensors,
sentencepiece, numpy, Pillow and tqdm alone, so that it runs on a bare GPU machine.
"""
