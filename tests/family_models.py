"""One small random model of each family, and the table of docs/families.md that is made of them.

python tests/family_models.py     # writes the table into docs/families.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
START, END = "<!-- table: start -->", "<!-- table: end -->"

VOCABULARY = 72
TOKENS = 5
"""Tokens that a test decodes greedily."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A row of the table: transformers' classes, a small config, and what is special about the family.

    ``task`` is ``generate`` (prompt, then cached decoding), or ``encode`` (one pass). ``head`` names the output layer.
    """

    name: str
    model: str
    config: Callable[[], Any]
    special: str
    task: str = "generate"
    seed: int = 0

    def make(self) -> Any:
        """The model, random but fixed; norms and biases too, which start as ones and zeros."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self.seed)
            model = getattr(transformers, self.model)(self.config()).eval()
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter += 0.5 * torch.randn_like(parameter)
            return model


_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _sized(config: str, **changes: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, config)(**(_SIZES | changes))


def _plain(config: str, **fields: Any) -> Callable[[], Any]:
    common = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return lambda: getattr(transformers, config)(**(common | fields))


_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
_OPT = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "init_std": 0.3}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 2.0}
_OSS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 4}
_OSS |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_GEMMA = {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8, "initializer_range": 0.1}
_BERT = {"num_key_value_heads": None, "type_vocab_size": 2}

FAMILIES = (
    Family(
        name="GPT-2",
        model="GPT2LMHeadModel",
        config=_plain("GPT2Config", **_GPT2),
        seed=10,
        special="Conv1D layers, tied head",
    ),
    Family(
        name="Llama",
        model="LlamaForCausalLM",
        config=_sized("LlamaConfig", tie_word_embeddings=False),
        seed=6,
        special="grouped-query attention, head of its own",
    ),
    Family(
        name="Llama, tied head",
        model="LlamaForCausalLM",
        config=_sized("LlamaConfig", tie_word_embeddings=True),
        seed=4,
        special="head tied to the embedding",
    ),
    Family(
        name="Mistral",
        model="MistralForCausalLM",
        config=_sized("MistralConfig", sliding_window=4),
        seed=10,
        special="sliding-window attention, shorter than the test's text",
    ),
    Family(name="Qwen2", model="Qwen2ForCausalLM", config=_sized("Qwen2Config"), seed=6, special="biases on q, k and v"),
    Family(
        name="Qwen3", model="Qwen3ForCausalLM", config=_sized("Qwen3Config", head_dim=8), seed=2, special="norms on q and k"
    ),
    Family(
        name="Phi-3",
        model="Phi3ForCausalLM",
        config=_sized("Phi3Config"),
        seed=13,
        special="fused qkv and gate/up projections",
    ),
    Family(
        name="Gemma 2",
        model="Gemma2ForCausalLM",
        config=_sized("Gemma2Config", final_logit_softcapping=2.0, attn_logit_softcapping=5.0, **_GEMMA),
        seed=10,
        special="soft-capped logits and attention, scaled embedding, tied head",
    ),
    Family(
        name="Gemma 3",
        model="Gemma3ForCausalLM",
        config=_sized("Gemma3TextConfig", **_GEMMA),
        seed=2,
        special="embedding that scales itself, local and global attention",
    ),
    Family(
        name="OPT", model="OPTForCausalLM", config=_plain("OPTConfig", **_OPT), seed=6, special="biases, learned positions"
    ),
    Family(
        name="GPT-NeoX",
        model="GPTNeoXForCausalLM",
        config=_sized("GPTNeoXConfig"),
        seed=6,
        special="fused qkv, attention and MLP in parallel",
    ),
    Family(
        name="Falcon",
        model="FalconForCausalLM",
        config=_sized("FalconConfig"),
        seed=1,
        special="one key and value head, a linear layer class of its own",
    ),
    Family(
        name="Mixtral",
        model="MixtralForCausalLM",
        config=_sized("MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
        seed=5,
        special="experts as stacked weights, all evaluated for every row",
    ),
    Family(
        name="Qwen2-MoE",
        model="Qwen2MoeForCausalLM",
        config=_sized("Qwen2MoeConfig", shared_expert_intermediate_size=32, decoder_sparse_step=1, **_MOE),
        seed=5,
        special="a shared expert with a gate beside the routed ones",
    ),
    Family(
        name="gpt-oss",
        model="GptOssForCausalLM",
        config=_sized("GptOssConfig", **_OSS),
        seed=6,
        special="experts with biases and weights the other way round, attention sinks",
    ),
    Family(
        name="BERT, embeddings",
        model="BertModel",
        config=_sized("BertConfig", **_BERT),
        task="encode",
        special="encoder; vectors of a text",
    ),
    Family(
        name="BERT, classification",
        model="BertForSequenceClassification",
        config=_sized("BertConfig", num_labels=3, **_BERT),
        task="encode",
        special="encoder with a classifier",
    ),
    Family(
        name="T5",
        model="T5ForConditionalGeneration",
        config=_plain("T5Config", decoder_start_token_id=0, **_T5),
        seed=7,
        special="encoder-decoder, cross-attention, scaled tied head",
    ),
)


def table() -> str:
    """The table of docs/families.md, one row for each family that a test runs."""
    rows = ["| family | class in transformers | verified with | task |", "| --- | --- | --- | --- |"]
    tasks = {"generate": "prompt, then cached decoding", "encode": "one pass"}
    rows += [f"| {f.name} | `{f.model}` | {f.special} | {tasks[f.task]} |" for f in FAMILIES]
    return "\n".join(rows)


def main() -> None:
    """Write the table into the page."""
    page = PAGE.read_text()
    before, after = page[: page.index(START) + len(START)], page[page.index(END) :]
    PAGE.write_text(f"{before}\n{table()}\n{after}")


if __name__ == "__main__":
    main()
