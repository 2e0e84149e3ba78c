"""The tokenizer made when training from scratch: CLIP's format, with one token a word of the taxonomy."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(texts: Sequence[str], max_tokens: int) -> CLIPTokenizer:
    """A `CLIPTokenizer` whose byte-pair merges make every word of `texts` one token.

    Any other text is still tokenised (byte by byte at worst), so the result serves wherever a CLIP tokenizer does.

    Parameters
    ----------
    texts
        The prompts of the taxonomy.
    max_tokens
        Length that prompts are padded or cut to, start and end tokens included.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = CLIPTokenizer().backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=1_000_000,  # no limit: merging stops when every word is whole
        min_frequency=0,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {piece: index for index, piece in enumerate([*dict.fromkeys(pieces), START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_tokens)
