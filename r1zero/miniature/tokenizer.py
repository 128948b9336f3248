"""A byte-level tokenizer without merges and with a few whole words: any text can be encoded, and the task is short."""

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

VOCAB_SIZE = 384
"""Rows of the embedding. Ids above the last token stand for no token, as in the published models."""
END = "<|endoftext|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "\\boxed{")
WORDS = (*TAGS, "Question:", "Assistant:", "answer", "the", "is", "so")
NUMBERS = tuple(str(number) for number in range(10, 100))


def build() -> Qwen2Tokenizer:
    """Returns a tokenizer of 256 bytes, an end token, and words and two-digit numbers as ordinary added tokens.

    It must be byte-level: transformers 5 loads any tokenizer beside a qwen2 config as Qwen2Tokenizer, whose
    pre-tokenizer writes a space as another character. A vocabulary of plain characters would silently lose its spaces.
    """
    alphabet = sorted(ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, END])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], model_max_length=2048)
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in (*WORDS, *NUMBERS)])
    return tokenizer
