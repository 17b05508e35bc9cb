"""Spans and round trips with every kind of tokenizer, and what the tokenizer's own special tokens do."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from analysis.errors import InputError
from analysis.prompts import Case, prompts_from_records
from analysis.responses import segmented
from analysis.trace_format import BUILT_IN, TraceFormat
from analysis.traces import Trace, TraceEncoder
from tests.conftest import SPECIAL, bpe_tokenizer, fast, word_tokenizer

CORPUS = [
    "Question: Tom has 12 apples.\nAnswer: He has 12.\nSo 12 + 34 = 46.\n\nThen 46.\n#### 46\n",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = 72; in all.\r\n</think>\nAnswer: 72\n",
    "a.\nb.\nc.\n1.\n2.\n café 中文。很好！ ok",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(prefix_space: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges cross line breaks: nothing splits the text before it is merged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 9, trainer)
    return with_bos(tokenizer)


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2: `▁` for spaces by a normalizer, unknown characters as bytes."""
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=list(SPECIAL), show_progress=False)
    pieces.train_from_iterator([text.replace("中文。很好！", "") for text in CORPUS] * 9, trainer)
    learned = json.loads(pieces.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    for byte in BYTES:
        vocabulary[byte] = len(vocabulary)
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = pieces.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return with_bos(tokenizer)


def unigram(normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=list(SPECIAL),
        unk_token="<unk>",
        initial_alphabet=[*map(chr, range(32, 127)), "\n", "\r", "\t"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 9, trainer)
    return with_bos(tokenizer)


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT: lower-cased, accents stripped, white space lost; [CLS] and [SEP] around the text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        CORPUS * 9, trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(SPECIAL), show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return fast(tokenizer)


def with_bos(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return fast(tokenizer)


LOSSLESS: dict[str, PreTrainedTokenizerFast] = {
    "byte-level": byte_level(False),
    "byte-level, prefix space": byte_level(True),
    "byte-level, words": bpe_tokenizer(),
    "sentencepiece BPE": sentencepiece_bpe(),
}
LOSSY: dict[str, PreTrainedTokenizerFast] = {
    "words": word_tokenizer(),
    "unigram": unigram(),
    "unigram, NFKC": unigram(normalizers.NFKC()),
    "wordpiece": wordpiece(),
}
FORMATS = {
    "gsm8k": BUILT_IN["gsm8k"],
    "think": BUILT_IN["think"],
    "separator": TraceFormat("{question}", " think ", "; ", " answer ", "\n"),
    "sentence": TraceFormat("Q: {question}\n", "", "\n", "\nAnswer: ", "\n", segmentation="sentence"),
}
# NFC and NFD, CJK, an emoji of several code points, right to left, tabs, zero width, what formats are made of.
VISIBLE = [
    "a.",
    "b",
    "12",
    "46.",
    ";",
    "é",
    "e\u0301",
    "中。",
    "😀",
    "👩\u200d🚀",
    "אב",
    "ﬁ",
    "½",
    "####",
    "#",
    "Answer",
]
PIECES = st.sampled_from([*VISIBLE, " ", "  ", "\n", "\n\n", "\r\n", "\t", "; ", "\u200b", "</", "<<1+1=2>>", "$2.5"])
TEXT = st.lists(PIECES, min_size=1, max_size=14).map("".join).filter(str.strip)


def parts(trace: Trace) -> list[tuple[int, int]]:
    return [trace.question, *trace.steps, trace.marker, trace.answer]


def check_cover(trace: Trace) -> None:
    """Every token is in exactly one part, so every chain token in exactly one step."""
    assert parts(trace)[0][0] == 0
    assert parts(trace)[-1][1] == len(trace.ids)
    for (_, end), (start, _) in pairwise(parts(trace)):
        assert end == start


def decode(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> str:
    """Without BOS, and without the space that add_prefix_space puts before a text."""
    return tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=60, deadline=None)
@given(chain=TEXT, question=TEXT, name=st.sampled_from(sorted(FORMATS)))
def test_a_chain_given_as_one_text_is_in_the_trace_as_it_was(kind, chain, question, name):
    encoder = TraceEncoder(LOSSLESS[kind], FORMATS[name])
    case = Case(question, "72", steps=None, chain=chain)
    cut = segmented(case, encoder.format)
    trace = encoder.encode(question, cut.steps, "72", cut.gaps)
    check_cover(trace)
    text = "".join(step + gap for step, gap in zip(cut.steps, cut.gaps, strict=True))
    assert text in trace.text
    if cut.steps and encoder.format.answer_start.strip() not in chain:
        assert text == chain.strip()
    decoded = decode(encoder.tokenizer, trace.ids)
    assert decoded in (trace.text, " " + trace.text)
    assert list(trace.ids) == encoder.tokenizer(trace.text).input_ids
    # The tokens of the chain show all of it, and those of each step the end of that step.
    shown = encoder.tokenizer.decode(trace.ids[slice(*trace.chain)], clean_up_tokenization_spaces=False)
    assert "".join(text.split()) in "".join(shown.split())
    for index in range(1, len(cut.steps) + 1):
        shorter = cut.first(index)
        check_cover(encoder.encode(question, shorter.steps, "72", shorter.gaps))


@pytest.mark.parametrize("kind", LOSSY)
@settings(max_examples=60, deadline=None)
@given(steps=st.lists(TEXT.map(str.strip), max_size=4), question=TEXT)
def test_a_tokenizer_that_changes_the_text_still_gets_spans(kind, steps, question):
    """The text kept is the user's; what the model reads of it is what its tokenizer leaves."""
    encoder = TraceEncoder(LOSSY[kind], FORMATS["think"])
    trace = encoder.encode(question, steps, "72")
    check_cover(trace)
    assert len(trace.steps) == len(steps)
    assert "\n".join(steps) in trace.text


def test_spans_follow_a_normalizer_that_changes_lengths():
    """`½` is three characters after NFKC and `ﬁ` two; the second step must still begin where it does."""
    encoder = TraceEncoder(LOSSY["unigram, NFKC"], FORMATS["separator"])
    trace = encoder.encode("q", ["ﬁ½ﬁ½ 1", "x 2"], "3")
    assert encoder.tokenizer.decode(trace.ids[slice(*trace.steps[1])]).strip() == "x 2"
    assert encoder.tokenizer.decode(trace.ids[slice(*trace.steps[0])]).strip() == "fi1⁄2fi1⁄2 1;".replace("⁄", "<unk>")


def test_lower_casing_tokenizer_keeps_steps_apart():
    encoder = TraceEncoder(LOSSY["wordpiece"], FORMATS["gsm8k"])
    trace = encoder.encode("Tom has 12.", ["Café 12 + 34 = 46.", "So 46."], "46")
    assert [encoder.tokenizer.decode(trace.ids[slice(*span)]).replace(" ", "") for span in trace.steps] == [
        "cafe12+34=46.",
        "so46.",
    ]
    assert trace.ids[0] == encoder.tokenizer.bos_token_id
    assert encoder.tokenizer.eos_token_id not in trace.ids


def test_a_token_that_merges_across_a_step_boundary_is_counted_once():
    """`.\\n` and more are one token here: the trained merges cross line breaks."""
    encoder = TraceEncoder(LOSSLESS["byte-level"], FORMATS["gsm8k"])
    merged = [token for token in encoder.tokenizer.get_vocab() if "Ċ" in token.strip("Ċ")]
    assert merged
    for chain in CORPUS:
        cut = segmented(Case("q", "1", chain=chain), encoder.format)
        trace = encoder.encode("q", cut.steps, "1", cut.gaps)
        check_cover(trace)
        assert sum(end - start for start, end in trace.steps) == trace.chain[1] - trace.chain[0]


def test_gaps_belong_to_the_step_before():
    encoder = TraceEncoder(LOSSLESS["byte-level, words"], FORMATS["gsm8k"])
    cut = segmented(Case("q", "1", chain="12 + 34 = 46\n\n \nSo he has 46."), encoder.format)
    assert cut.gaps == ("\n\n \n", "")
    trace = encoder.encode("q", cut.steps, "46", cut.gaps)
    assert encoder.tokenizer.decode(trace.ids[slice(*trace.steps[0])]) == " 12 + 34 = 46\n\n \n"
    assert encoder.tokenizer.decode(trace.ids[slice(*trace.steps[1])]) == "So he has 46."
    together = encoder.encode_answers("q", cut.steps, ["46", "47"], cut.gaps)
    assert together == [encoder.encode("q", cut.steps, answer, cut.gaps) for answer in ("46", "47")]


# Special tokens


@pytest.mark.parametrize("encode", ["question", "step", "gap"])
def test_the_text_of_a_special_token_is_refused(encode):
    encoder = TraceEncoder(LOSSLESS["byte-level"], FORMATS["gsm8k"])
    texts = {"question": "q", "step": "s", "gap": " "} | {encode: "what is <eos> for?"}
    with pytest.raises(InputError, match="holds '<eos>', which the tokenizer reads as its special token"):
        encoder.encode(texts["question"], [texts["step"], "t"], "1", [texts["gap"], ""])
    if encode == "question":
        with pytest.raises(InputError, match="'<eos>'"):
            encoder.encode_question(texts["question"])


def test_a_special_token_may_be_the_format_s_stop_and_other_words_in_brackets_are_text():
    encoder = TraceEncoder(LOSSLESS["byte-level"], TraceFormat("{question}", "\n", "\n", "\nA: ", "<eos>"))
    trace = encoder.encode("<q>", ["<think>", "</s>"], "1")
    assert trace.ids[-1] == encoder.tokenizer.eos_token_id
    assert list(trace.ids).count(encoder.tokenizer.eos_token_id) == 1


# Chat templates and BOS

TEMPLATES = {
    "with BOS": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]",
    "without BOS": "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] ",
    "thinking": "{{ bos_token }}[user] {{ messages[-1].content }}\n[assistant]\n{{ '<think>\n' }}",
    "thinking, no line break": "{{ bos_token }}[user] {{ messages[-1].content }}\n[assistant]\n<think>",
}


def chat(template: str, **changes: object) -> TraceEncoder:
    tokenizer = byte_level(False)
    tokenizer.chat_template = template
    settings = {"question": "{question}", "chain_start": "", "step_separator": "\n", "answer_start": "\nAnswer: "}
    return TraceEncoder(tokenizer, TraceFormat(**{**settings, "stop": "\n", "chat": True, **changes}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_question_is_the_tokens_that_transformers_gives(name):
    encoder = chat(TEMPLATES[name])
    turns = [{"role": "user", "content": "Tom has 12."}]
    expected = encoder.tokenizer.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert encoder.encode_question("Tom has 12.") == expected
    n_bos = int("without" not in name)
    assert expected.count(encoder.tokenizer.bos_token_id) == n_bos
    assert list(encoder.encode("Tom has 12.", ["12."], "4").ids).count(encoder.tokenizer.bos_token_id) == n_bos


@pytest.mark.parametrize("question", ["{question}", "<bos>{question}"])
def test_without_a_chat_template_there_is_one_bos(question):
    encoder = TraceEncoder(byte_level(False), TraceFormat(question, "\n", "\n", "\nA: ", "\n"))
    for ids in (encoder.encode("Tom", ["12."], "4").ids, encoder.encode_question("Tom")):
        assert list(ids).count(encoder.tokenizer.bos_token_id) == 1
        assert ids[0] == encoder.tokenizer.bos_token_id


def test_a_template_that_opens_the_chain_is_not_given_a_second_tag():
    think = {"chain_start": "<think>\n", "answer_start": "\n</think>\n\nAnswer: "}
    for template, expected in (
        (TEMPLATES["thinking"], "[assistant]\n<think>\n12."),
        (TEMPLATES["thinking, no line break"], "[assistant]\n<think>\n12."),
        (TEMPLATES["without BOS"], "[assistant] <think>\n12."),
    ):
        trace = chat(template, **think).encode("Tom", ["12."], "4")
        assert trace.text.count("<think>") == 1
        assert expected in trace.text
    assert "<think>\n12." in chat(TEMPLATES["thinking"], **{**think, "chain_start": ""}).encode("Tom", ["12."]).text
    with pytest.raises(InputError, match="opens <think>; put it in 'chain_start'"):
        chat(TEMPLATES["without BOS"], **{**think, "chain_start": ""}).encode("Tom", ["12."])


def test_system_turns_and_templates_that_want_none_or_need_one():
    rejecting = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    needing = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    assert "[system] Be brief.\n[user] Tom\n" in chat(TEMPLATES["with BOS"], system="Be brief.").question_text("Tom")
    with pytest.raises(InputError, match=r"refuses a system and a user turn \(no system role\)"):
        chat(rejecting + TEMPLATES["with BOS"], system="x").encode_question("Tom")
    with pytest.raises(InputError, match=r"refuses a user turn alone \(system first\); set 'system'"):
        chat(needing + TEMPLATES["with BOS"]).encode_question("Tom")
    with pytest.raises(InputError, match="chat template"):
        chat("{{ messages[0].content.nothing() }}").encode_question("Tom")


def test_spaces_before_the_chain_are_left_to_the_model():
    encoder = TraceEncoder(LOSSLESS["byte-level, words"], BUILT_IN["gsm8k"])
    asked = encoder.encode_question("Tom")
    assert encoder.tokenizer.decode(asked[1:]) == "Question: Tom\nAnswer:"
    assert encoder.encode("Tom", ["So he has"]).ids[: len(asked)] == tuple(asked)


# Real data, where it is at hand


@pytest.mark.parametrize("segmentation", ["line", "sentence"])
def test_every_gsm8k_solution_round_trips(data, segmentation):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(data("stories260K"))
    trace_format = TraceFormat("Q: {question}\nA:", " ", "\n", "\n#### ", "\n", segmentation=segmentation)
    encoder = TraceEncoder(tokenizer, trace_format)
    lines = data("gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    passed = 0
    for record, prompt in zip(records, prompts_from_records(records), strict=True):
        chain, _, gold = record["answer"].rpartition("\n#### ")
        case = segmented(prompt.case, trace_format)
        assert case.answer == gold.strip()
        trace = encoder.encode(case.question, case.steps, case.answer, case.gaps)
        check_cover(trace)
        question, marker = f"Q: {case.question}\nA: ", f"\n#### {case.answer}\n"
        assert trace.text == question + chain.strip() + marker
        ids = trace.ids[1:] if trace.ids[0] == tokenizer.bos_token_id else trace.ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == trace.text
        passed += 1
    assert passed == len(records)
