"""What PyTorch computes for two small models, stored for tests/test_reference.cpp.

    python make_reference.py        # writes the files beside itself

reference.json         sizes, three ragged batches, and the loss of each of ten steps
torch.safetensors      initial.* gradient.* final.* of each tensor, and logits: computed in float64
paper.safetensors      and stored in F32. Initial parameters are F32 numbers, so they lose nothing.

PyTorch sees each batch padded, with a key_padding_mask; the C++ sees it ragged.
"""

import collections
import json
import pathlib

import safetensors.torch
import torch
from torch import nn

import torch_module

FOLDER = pathlib.Path(__file__).parent
SIZES = dict(num_items=37, hidden_size=16, num_layers=2, num_heads=4, max_length=12)
SPECIAL, PAD, MASK = 3, 0, 1
STEPS, LEARNING_RATE, WEIGHT_DECAY = 10, 1e-3, 0.01
SEED = 1


class PaperBert4Rec(torch_module.Bert4Rec):
    """The same encoder, then E LayerNorm(gelu(W x + b)) + c with the item table E: eq. 7 of the
    paper, and the LayerNorm of its authors' code."""

    def __init__(self, **config):
        super().__init__(**config)
        H, V = config["hidden_size"], config["num_items"] + SPECIAL
        self.head = nn.Sequential(collections.OrderedDict(
            dense=nn.Linear(H, H), gelu=nn.GELU(), norm=nn.LayerNorm(H)))
        self.output = nn.ParameterDict({"bias": torch.zeros(V)})

    def forward(self, tokens, padding=None):
        x = self.head(self.encode(tokens, padding))
        return x @ self.item_embedding.weight.T + self.output["bias"]


MODELS = {"torch": torch_module.Bert4Rec, "paper": PaperBert4Rec}


def make_batch(generator):
    """Rows of 1 ... 12 tokens in any order and, in their middle, one of 7 without a mask."""
    def draw(n):
        return torch.randperm(n, generator=generator).tolist()

    lengths = [n + 1 for n in draw(SIZES["max_length"])]
    rows = [(n, set(draw(n)[:max(1, round(0.3 * n))])) for n in lengths]
    rows.insert(6, (7, set()))
    items = [item for _ in range(3) for item in draw(SIZES["num_items"])]
    batch = dict(tokens=[], offsets=[0], masked=[], targets=[])
    for length, hidden in rows:
        for place in range(length):
            item = items.pop()
            if place in hidden:
                batch["masked"].append(len(batch["tokens"]))
                batch["targets"].append(item)
            batch["tokens"].append(MASK if place in hidden else item + SPECIAL)
        batch["offsets"].append(len(batch["tokens"]))
    return batch


def rows_of(batch):
    offsets = batch["offsets"]
    return [torch.tensor(batch["tokens"][a:b]) for a, b in zip(offsets, offsets[1:])]


def masked_logits(model, batch):
    """[M,num_items], from the padded batch. Only items compete: PAD, MASK and UNK are cut off."""
    tokens = nn.utils.rnn.pad_sequence(rows_of(batch), batch_first=True, padding_value=PAD)
    return model(tokens, tokens == PAD)[tokens == MASK][:, SPECIAL:]


def masked_logits_row_by_row(model, batch):
    return torch.cat([model(row[None])[0][row == MASK] for row in rows_of(batch)])[:, SPECIAL:]


def loss_of(logits, batch):
    return nn.functional.cross_entropy(logits, torch.tensor(batch["targets"]))


def make_model(name, dtype):
    """The same numbers for each dtype: normal with deviation 0.2, around 1 for gains of norms."""
    generator = torch.Generator().manual_seed(SEED)
    model = MODELS[name](**SIZES, dropout=0.0).to(dtype)
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            is_gain = "norm" in parameter_name and parameter_name.endswith("weight")
            p.copy_(0.2 * torch.randn(p.shape, generator=generator) + (1.0 if is_gain else 0.0))
    return model


def adamw(model, learning_rate, weight_decay):
    """Biases and the gains of norms do not decay, nor does the scale of the matching head."""
    tensors = list(model.parameters())
    return torch.optim.AdamW(
        [dict(params=[p for p in tensors if p.ndim > 1], weight_decay=weight_decay),
         dict(params=[p for p in tensors if p.ndim == 1], weight_decay=0.0)],
        lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)


def train(model, batches):
    """Ten steps of AdamW, the batches in rotation; returns the losses before each."""
    optimizer = adamw(model, LEARNING_RATE, WEIGHT_DECAY)
    losses = []
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        loss = loss_of(masked_logits(model, batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients(model, batch):
    model.zero_grad()
    loss_of(masked_logits(model, batch), batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def key_part(tensor):
    return tensor.chunk(3)[1]


def relative(found, expected):
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


def check_batch(batches):
    """Every item is seen, so that no row of the tables goes untested."""
    seen = {token for batch in batches for token in batch["tokens"]}
    targets = {item for batch in batches for item in batch["targets"]}
    assert seen == set(range(SPECIAL, SPECIAL + SIZES["num_items"])) | {MASK}
    assert all(0 <= item < SIZES["num_items"] for item in targets) and len(targets) > 25


def check_model(name, model, batch):
    """Padding changes nothing; gradients are large, except that of the keys' bias, which is 0."""
    padded, single = masked_logits(model, batch), masked_logits_row_by_row(model, batch)
    assert (padded - single).abs().max() < 1e-12
    assert (padded.argmax(1).unique().numel()) > 1
    for tensor_name, gradient in gradients(model, batch).items():
        assert gradient.abs().max() > 1e-3, (name, tensor_name, gradient.abs().max())
        if tensor_name.endswith("in_proj_bias"):
            assert key_part(gradient).abs().max() < 1e-15


def check_conditioning(name, batches, final):
    """AdamW divides a gradient by its own size, so one near 0 turns rounding errors into steps of
    LEARNING_RATE. These data have none: PyTorch's own float32 must come within half of what the C++
    is allowed. (The keys' bias, whose gradient is 0, is left out.)"""
    model = make_model(name, torch.float32)
    train(model, batches)
    worst = 0.0
    for tensor_name, found in values(model).items():
        expected = final[tensor_name]
        if tensor_name.endswith("in_proj_bias"):
            found, expected = (torch.cat(t.chunk(3)[::2]) for t in (found, expected))
        worst = max(worst, relative(found, expected))
    print(f"{name}: float32 PyTorch is off by {worst:.2e} after {STEPS} steps")
    assert worst < 5e-6


def make_reference(name, batches):
    """Writes <name>.safetensors; returns the losses."""
    model = make_model(name, torch.float64)
    check_model(name, model, batches[0])
    stored = {"logits": masked_logits(model, batches[0]).detach()}
    stored |= {f"initial.{key}": value for key, value in values(model).items()}
    stored |= {f"gradient.{key}": value for key, value in gradients(model, batches[0]).items()}
    losses = train(model, batches)
    check_conditioning(name, batches, values(model))
    stored |= {f"final.{key}": value for key, value in values(model).items()}
    stored = {key: value.float().contiguous() for key, value in stored.items()}
    # save_file would make a file that only its owner may read.
    (FOLDER / f"{name}.safetensors").write_bytes(safetensors.torch.save(stored))
    return losses


def write_json(name, members):
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in members.items()]
    (FOLDER / name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    batches = [make_batch(generator) for _ in range(3)]
    check_batch(batches)
    reference = dict(model=SIZES, batches=batches, learning_rate=LEARNING_RATE,
                     weight_decay=WEIGHT_DECAY, steps=STEPS,
                     losses={name: make_reference(name, batches) for name in MODELS})
    write_json("reference.json", reference)


if __name__ == "__main__":
    main()
