"""A LLaVA with random weights over `make_byte_tokenizer`, and its processor: pictures of 16 pixels are four tokens."""

from __future__ import annotations

from typing import Any

import torch

TEMPLATE = (
    "{% for m in messages %}<|user|>{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|reply|>{% endif %}"
)


def make_processor(tokenizer: Any) -> Any:
    """A processor over a byte tokenizer, which gets a token for pictures."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    )


def make_llava(image_token: int) -> Any:
    """One layer of text and two of vision, with random but fixed weights."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    tokens = {"vocab_size": 264, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    text = LlamaConfig(
        **sizes, **tokens, num_hidden_layers=1, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2
    )
    vision = CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=16, patch_size=8, projection_dim=32)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=image_token, **tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return LlavaForConditionalGeneration(config).eval()
