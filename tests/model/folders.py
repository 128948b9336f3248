"""Hugging Face folders that a test opens and spoils."""

from safetensors.torch import load_file, save_file

from r1zero.checkpoint.hf_files import HfFolder
from r1zero.model.families import read_shape
from r1zero.model.weights import weights


def opened(folder):
    shape = read_shape(folder)
    return HfFolder(folder, shape, weights(shape))


def rewrite(folder, change):
    """Apply `change` to the dict of the folder's tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
