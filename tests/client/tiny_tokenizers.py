"""Small tokenizers of the two kinds that matter, trained in a moment: byte-level BPE, and BPE with byte fallback."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "ROMEO: But soft, what light through yonder window breaks? It is the east, and Juliet is the sun.",
    "naïve café, Ελλάδα, Привет мир, 你好世界, こんにちは, 🙂👩‍👩‍👧‍👦 emoji",
] * 4


@cache
def byte_level() -> bytes:
    """Every byte is a token; ids 0 and 1 are special, `<think>` is added and not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("日本", special=False)])
    return tokenizer.to_str().encode()


@cache
def byte_fallback() -> bytes:
    """Llama's way: `▁` for spaces, `<0x..>` for what is not in the vocabulary."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyzé", "▁t", "▁th", "▁the", "e▁"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("e", "▁")]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer.to_str().encode()


def vocabulary(tokenizer_json: bytes) -> int:
    return int(Tokenizer.from_str(tokenizer_json.decode()).get_vocab_size())
