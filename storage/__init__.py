"""Weights on disk: which files are a model, what they hold, and files written anew. Needs torch and safetensors alone."""
