"""Sana in plain PyTorch: what a file is, the networks, checkpoint layouts, text rules, sampling."""
