"""The Hugging Face Hub: what is published there, fetching it to where the loaders look, publishing what was trained."""
