"""Tiny random models of many architectures, with the tokenizer of the tiny model."""

from pathlib import Path
from typing import Any

from tests.support.tiny_model import write_tiny_model

_SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_OF_GPT = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 512}
_OF_GEMMA = {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 64, "num_key_value_heads": 2}
_TOKENS = {"eos_token_id": 1, "pad_token_id": 2, "bos_token_id": None}
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}

# class, and its configuration's own sizes
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", _OF_GPT),
    "gpt_neox": ("GPTNeoXForCausalLM", {**_SIZES, "max_position_embeddings": 512}),
    "opt": ("OPTForCausalLM", {**_SIZES, "ffn_dim": 96, "word_embed_proj_dim": 24, "do_layer_norm_before": False}),
    "bloom": ("BloomForCausalLM", {"hidden_size": 48, "n_layer": 2, "n_head": 4}),
    "qwen2": ("Qwen2ForCausalLM", {**_SIZES, "num_key_value_heads": 2}),
    "mistral": ("MistralForCausalLM", {**_SIZES, "num_key_value_heads": 2}),
    "phi3": ("Phi3ForCausalLM", {**_SIZES, "num_key_value_heads": 2}),
    "gemma2": ("Gemma2ForCausalLM", {**_SIZES, **_OF_GEMMA}),
    "mixtral": ("MixtralForCausalLM", {**_SIZES, "num_key_value_heads": 2, "num_local_experts": 2}),
    "gemma3": ("Gemma3ForConditionalGeneration", {**_SIZES, **_OF_GEMMA}),  # which sees pictures
}


def write_model(folder: Path, architecture: str, **own: Any) -> Path:
    """Write a model of an architecture over the tiny tokenizer; `own` changes its configuration."""
    import torch
    import transformers

    write_tiny_model(folder)
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(folder))
    name, sizes = ARCHITECTURES[architecture]
    model_class = getattr(transformers, name)
    told = {"vocab_size": vocabulary, **_TOKENS, **sizes, **own}
    if name.endswith("ConditionalGeneration"):
        told = {"text_config": told, "vision_config": {**_VISION, "image_size": 28, "patch_size": 14}}
        told |= {"mm_tokens_per_image": 4, "pad_token_id": 2, "eos_token_id": 1}
    torch.manual_seed(0)
    model_class(model_class.config_class(**told)).save_pretrained(folder)
    return folder
