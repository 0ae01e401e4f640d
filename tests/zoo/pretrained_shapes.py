"""BERT and Llama as `transformers` builds them, tiny and with seeded weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.sample import Sample
from tests.zoo.weights import fill, tokens


class Bert(nn.Module):
    """BertModel that takes and gives plain tensors."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=120,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
            attn_implementation="eager",
        )
        self.bert = BertModel(config, add_pooling_layer=True)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.bert(input_ids=ids, attention_mask=mask, return_dict=False)[0]


class Llama(nn.Module):
    """LlamaForCausalLM that takes and gives plain tensors."""

    def __init__(self) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        config = LlamaConfig(
            vocab_size=120,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            attn_implementation="sdpa",
        )
        self.llama = LlamaForCausalLM(config)

    def forward(self, ids: Tensor) -> Tensor:
        mask = torch.ones_like(ids)  # without one, transformers looks for packed sequences with aten::diff, which
        return self.llama(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=False)[0]  # opset 17 lacks


def bert() -> Sample:
    ids = tokens("bert.ids", 120, 2, 12)
    mask = ids.new_ones(ids.shape)
    mask[1, 8:] = 0
    return Sample(fill(Bert(), gain=1.2), (ids, mask))


def llama() -> Sample:
    return Sample(fill(Llama(), gain=1.2), (tokens("llama.ids", 120, 2, 12),))
