"""Idefics 3 and Qwen2-VL with random weights over `make_byte_tokenizer`, and their processors, beside `llava`."""

from __future__ import annotations

from typing import Any

import torch

from gateway.llava import TEMPLATE

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
TEXT |= {"vocab_size": 272, "max_position_embeddings": 512, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}


def make_idefics(tokenizer: Any) -> tuple[Any, Any]:
    """The model and its processor: a picture of 16 pixels is four tokens and three around them."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer.add_tokens(["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"], special_tokens=True)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Idefics3Config(
        text_config=TEXT | {"model_type": "llama", "initializer_range": 0.2},
        vision_config=vision | {"image_size": 16, "patch_size": 4},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=256,
    )
    side = {"longest_edge": 16}
    images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    processor = Idefics3Processor(image_processor=images, tokenizer=tokenizer, image_seq_len=4, chat_template=TEMPLATE)
    return _seeded(Idefics3ForConditionalGeneration, config), processor


def make_qwen(tokenizer: Any) -> tuple[Any, Any]:
    """The model and what stands for its processor, which needs torchvision: a picture is one token for 8×8 pixels."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer.add_tokens(names, special_tokens=True)
    image, video, start, end = tokenizer.convert_tokens_to_ids(names)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=TEXT | {"initializer_range": 0.2, "rope_parameters": rope},
        vision_config=vision | {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return _seeded(Qwen2VLForConditionalGeneration, config), _QwenProcessor(tokenizer, image)


class _QwenProcessor:
    """What `Qwen2VLProcessor` does of pictures, without its videos."""

    def __init__(self, tokenizer: Any, image: int) -> None:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.tokenizer, self._image = tokenizer, image
        size = {"shortest_edge": 64, "longest_edge": 1024}
        self.image_processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=size)
        self.chat_template = TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")

    def __call__(self, text: list[str], images: list[Any], **options: Any) -> dict[str, Any]:
        words, made = text[0], {}
        if images:
            made = dict(self.image_processor(images=images, return_tensors="pt"))
            for grid in made["image_grid_thw"]:
                words = words.replace("<|image_pad|>", "<|mark|>" * (int(grid.prod()) // 4), 1)
            words = words.replace("<|mark|>", "<|image_pad|>")
        made |= self.tokenizer([words], **options)
        return made | ({"mm_token_type_ids": (made["input_ids"] == self._image).int()} if images else {})


def _seeded(kind: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()
