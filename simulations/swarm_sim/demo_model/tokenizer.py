"""The demo model's tokenizer: byte-level BPE trained on its text, and a chat template that sets messages as a play.

Owns the vocabulary, the special tokens and the template; `corpus.py` renders the text in the same two forms that the
template and a plain prompt have. Called by `train.py`.

Byte-level BPE: Sennrich et al. 2016, over bytes as in GPT-2 (Radford et al. 2019, section 2.2), so any text
round-trips and no token is unknown.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"  # closes a speech in a chat, so that a reply ends by itself; plain text never holds it
CHAT = "<|chat|>"  # opens a chat
SMALLEST_VOCABULARY = len(pre_tokenizers.ByteLevel.alphabet()) + len((END, CHAT))

# The user is Juliet, the model Romeo; what a system message says, the Duke says.
CHAT_TEMPLATE = (
    "{%- set speakers = {'system': 'DUKE VINCENTIO', 'user': 'JULIET', 'assistant': 'ROMEO'} -%}"
    f"{{{{- '{CHAT}' -}}}}"
    "{%- for message in messages -%}"
    f"{{{{- speakers[message['role']] + ':\\n' + message['content'] | trim + '{END}' -}}}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ROMEO:\\n' -}}{%- endif -%}"
)


def train_tokenizer(text: str, vocabulary: int, context_tokens: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE of at most `vocabulary` entries, bytes and special tokens included, from `text`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END, CHAT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=END,
        extra_special_tokens=[CHAT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    )
