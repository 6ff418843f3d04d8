"""Captions as token ids: byte-level BPE (https://arxiv.org/abs/1508.07909, bytes as in GPT-2), so any text
of any language can be written and read back. Its JSON is part of a model's config."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cluster.errors import UserError

# ids of no text; the tokenizer's own come after them, so that nothing in a caption can be mistaken for one
PAD, START, END = 0, 1, 2
NUM_SPECIAL = 3


class CaptionTokenizer:
    """Text to token ids and back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def trained_on(cls, captions: Iterable[str], *, vocabulary_size: int) -> CaptionTokenizer:
        """Learns the commonest byte sequences of the captions; the same captions give the same tokenizer."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        # a blank before the first word too, so that it is the same token as elsewhere
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size - NUM_SPECIAL,
            min_frequency=2,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, tree: Any) -> CaptionTokenizer:
        """What `to_json` gave. Raises UserError when it is none."""
        try:
            return cls(Tokenizer.from_str(json.dumps(tree)))
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"the tokenizer in the model's config cannot be read: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """All of it, for `from_json`."""
        tree: dict[str, Any] = json.loads(self._tokenizer.to_str())
        return tree

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, the special ones included."""
        return int(self._tokenizer.get_vocab_size()) + NUM_SPECIAL

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, without start and end."""
        return [token + NUM_SPECIAL for token in self._tokenizer.encode(text).ids]

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens; special ones and cut characters are left out."""
        own = [token - NUM_SPECIAL for token in ids if token >= NUM_SPECIAL]
        text: str = self._tokenizer.decode(own, skip_special_tokens=False)
        return text.replace("\ufffd", "").strip()
