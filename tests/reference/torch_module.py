"""The default model ("architecture": "torch") as a PyTorch module, and ten recommendations from it.

    python torch_module.py output/models/best_model.safetensors 12 7 30

The numbers are items in the order of items.jsonl (from 0), the oldest first. In the vocabulary,
row 0 is PAD, 1 MASK, 2 UNK, and item i stands at row i + 3.
"""

import json
import sys

import safetensors
import safetensors.torch
import torch
from torch import nn


class Bert4Rec(nn.Module):
    def __init__(self, num_items, hidden_size, num_layers, num_heads, max_length, dropout,
                 objective="cloze"):
        super().__init__()
        self.causal = objective == "causal"  # each token sees itself and earlier ones
        H, V = hidden_size, num_items + 3
        self.item_embedding = nn.Embedding(V, H)
        self.position_embedding = nn.Embedding(max_length, H)
        self.embedding_norm = nn.LayerNorm(H)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(H, num_heads, 4 * H, dropout, activation="gelu",
                                           batch_first=True, norm_first=False)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.output = nn.Linear(H, V)

    def encode(self, tokens, padding):
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.item_embedding(tokens) + self.position_embedding(places)
        ahead = places > places[:, None] if self.causal else None
        return self.encoder(self.dropout(self.embedding_norm(x)), mask=ahead,
                            src_key_padding_mask=padding)

    def forward(self, tokens, padding=None):  # [B,n], and where tokens are PAD -> logits [B,n,V]
        return self.output(self.encode(tokens, padding))


def load(path):
    with safetensors.safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["model_config"])
    if config.pop("architecture") != "torch":
        raise SystemExit(f"{path}: not of the architecture \"torch\"")
    # nn.TransformerEncoderLayer has one dropout for everything; in eval mode there is none.
    config.pop("attention_dropout")
    model = Bert4Rec(**config)
    model.load_state_dict(safetensors.torch.load_file(path), strict=True)
    return model.eval()


def next_item_logits(model, items):
    """Of every item, after a history: its newest L - 1 items and a MASK, or with the causal
    objective its newest L items."""
    asked = [] if model.causal and items else [1]
    newest = items[max(0, len(items) + len(asked) - model.position_embedding.num_embeddings):]
    tokens = torch.tensor([[item + 3 for item in newest] + asked])
    with torch.no_grad():
        return model(tokens)[0, -1, 3:]


if __name__ == "__main__":
    logits = next_item_logits(load(sys.argv[1]), [int(item) for item in sys.argv[2:]])
    best = logits.topk(min(10, len(logits)))
    for item, logit in zip(best.indices.tolist(), best.values.tolist()):
        print(f"{item} {logit:.7g}")
