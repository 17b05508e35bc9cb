"""A task's words as token ids: its tokenizer, and the same encoding without it, for speed in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TRACE_FORMAT: dict[str, object] = {
    "version": 1,
    "question": "Q {question}",
    "chain_start": " think ",
    "step_separator": " ; ",
    "answer_start": " ; answer ",
    "stop": "<eos>",
}
"""How question, chain and answer become one text, in every family."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of one task, and how its question, chain and answer become one text.

    Attributes:
        words: all words; a word's place is its token id.
        trace_format: as `trace_format.json` holds it.
    """

    words: tuple[str, ...]
    trace_format: Mapping[str, object] = field(default_factory=lambda: TRACE_FORMAT)

    @cached_property
    def token_id(self) -> dict[str, int]:
        """Word → token id."""
        return {word: index for index, word in enumerate(self.words)}

    @cached_property
    def marker(self) -> list[int]:
        """Token ids of the answer marker, which stands between chain and answer."""
        return self.ids(str(self.trace_format["answer_start"]))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text of known words, without `<bos>`."""
        return [self.token_id[word] for word in text.split()]

    def question_ids(self, question: str) -> list[int]:
        """Token ids of everything before the chain."""
        template = str(self.trace_format["question"]).replace("{question}", question)
        return [self.token_id["<bos>"], *self.ids(template + str(self.trace_format["chain_start"]))]

    def prefix_ids(self, question: str, chain: Sequence[str]) -> list[int]:
        """Token ids of question, chain and answer marker: what the answer is predicted from."""
        steps = str(self.trace_format["step_separator"]).join(chain)
        return [*self.question_ids(question), *self.ids(steps), *self.marker]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The word-level tokenizer: one token a word, `<bos>` put in front."""
        tokenizer = Tokenizer(models.WordLevel(dict(self.token_id), unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", self.token_id["<bos>"])]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            unk_token="<unk>",
            model_max_length=256,
            clean_up_tokenization_spaces=False,
        )
