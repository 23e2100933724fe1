"""Figures: ours and a baseline in one process, with the same weights, side by side."""
