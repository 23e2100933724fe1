"""Operations of the models, one file each: eager PyTorch, which is the specification, and in fused/ what
replaces it on a GPU; dispatch.py picks. Nothing of the host."""
