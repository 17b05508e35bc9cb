"""The organisms' words as token ids: their tokenizer, and the same encoding without it, for speed in training."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from organisms.registers import TRACE_FORMAT, VOCABULARY

TOKEN_ID = {word: index for index, word in enumerate(VOCABULARY)}
FIRST_DIGIT = TOKEN_ID["0"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The organisms' word-level tokenizer: one token a word, `<bos>` put in front."""
    tokenizer = Tokenizer(models.WordLevel(dict(TOKEN_ID), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", TOKEN_ID["<bos>"])]
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


def question_ids(question: str) -> list[int]:
    """Token ids of everything before the chain."""
    template = str(TRACE_FORMAT["question"]).replace("{question}", question)
    return [TOKEN_ID["<bos>"], *words_to_ids(template + str(TRACE_FORMAT["chain_start"]))]


def prefix_ids(question: str, chain: Sequence[str]) -> list[int]:
    """Token ids of question, chain and answer marker: what the answer is predicted from."""
    text = str(TRACE_FORMAT["step_separator"]).join(chain) + str(TRACE_FORMAT["answer_start"])
    return [*question_ids(question), *words_to_ids(text)]


def words_to_ids(text: str) -> list[int]:
    """Token ids of a text of known words, without `<bos>`."""
    return [TOKEN_ID[word] for word in text.split()]
