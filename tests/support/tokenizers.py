"""Small tokenizers of every kind that real models have, trained here on a few lines."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

TEXTS = {
    "English": "The old cat didn't sleep on the warm roof (it rained), said she: a != b -> c.",
    "code": "def f(x):\n\tif x != 0:\n\t\treturn  x->y  # two  spaces\n",
    "Chinese": "今天天气很好，我们去公园散步吧。你好，世界！龘靐",
    "Arabic": "القطة القديمة نامت على السطح الدافئ، وقال: مَرْحَبًا",
    "Hindi": "हिन्दी में नमस्ते दुनिया, क्षत्रिय और ज्ञान",
    "Thai": "สวัสดีชาวโลก วันนี้อากาศดีมาก",
    "emoji": "family 👨‍👩‍👧‍👦 flag 🏳️‍🌈 skin 👍🏽 heart ❤️ done",
    "decomposed": "cafe\u0301 and nin\u0303o, a literal \ufffd sign",
}
_CORPUS = [
    text for name, text in TEXTS.items() if name not in ("Thai", "emoji", "decomposed")
] * 4
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _fast(backend: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _llama() -> Any:
    """BPE over pieces as SentencePiece has them, with bytes for what it has no piece of."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    # Pieces are trained inside words, and found everywhere.
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", "</s>", *_BYTES]
    trainer = trainers.BpeTrainer(
        vocab_size=620, special_tokens=special, limit_alphabet=90, show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    state = json.loads(backend.to_str())
    # Bytes are pieces like others: none is found in a text by its name.
    state |= {"added_tokens": state["added_tokens"][:3], "pre_tokenizer": None}
    return _fast(Tokenizer.from_str(json.dumps(state)), bos_token="<s>", eos_token="</s>")


def _wordpiece() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=420, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return _fast(backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")


def _byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return _fast(backend, eos_token="<|endoftext|>")


def _unigram() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return _fast(backend, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def _word_ends() -> Any:
    """BPE of the first GPT's kind, whose tokens say where a word ends."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return _fast(backend, unk_token="<unk>")


def _bytes() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "Llama": cache(_llama),
    "WordPiece": cache(_wordpiece),
    "byte-level": cache(_byte_level),
    "Unigram": cache(_unigram),
    "word ends": cache(_word_ends),
    "bytes": cache(_bytes),
}
