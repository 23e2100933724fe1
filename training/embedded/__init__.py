"""Training of the embedded tiny models: drawn pictures and clips, judges of them, and the networks' training loops.

Imports torch, safetensors, sentencepiece, numpy, Pillow and tqdm alone, so that it runs on a bare GPU machine.
"""
