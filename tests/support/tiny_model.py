"""A language model of sixty thousand parameters, made on the spot."""

from pathlib import Path

WORDS = """the film is a warm and witty tale of love full of charm wonderful great acting superb delight dull boring tedious
awful mess bad worst lifeless plot story director cast ending music slow fast good fine moving clever silly tired
fresh""".split()  # noqa: SIM905


def write_tiny_model(folder: Path) -> None:
    """Write a 2-layer Llama with a word-level vocabulary, random weights, in float32."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import Metaspace as MetaspaceDecoder
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = [chr(code) for code in range(32, 127)] + ["\n", "▁"]
    pieces = ["<unk>", "<end>", "<pad>", *[f"▁{word}" for word in WORDS], *characters]
    scores = [(piece, -5.0 if piece.startswith("▁") and len(piece) > 1 else -10.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = MetaspaceDecoder()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", unk_token="<unk>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %}<end>{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(pieces),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            eos_token_id=1,
            pad_token_id=2,
            bos_token_id=None,
            tie_word_embeddings=True,
            initializer_range=0.15,
        )
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
