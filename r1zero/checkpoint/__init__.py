"""Reading and writing checkpoints: those of training, Hugging Face folders, and conversion between the two."""
