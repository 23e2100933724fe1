"""Data sets: files in any usual layout to the rows of a manifest, rows to tensors, tensors to batches. Without ComfyUI."""
