"""Training of the embedded tiny models: drawn pictures, a judge of them, and the three networks' training loops.

Imports torch, safetensors, sentencepiece, numpy, Pillow and tqdm alone, so that it runs on a bare GPU machine.
"""
