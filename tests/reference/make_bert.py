"""What Transformers computes for two small BERTs, stored for tests/test_hugging_face.cpp.

    python make_bert.py                  # writes the files beside itself
    python make_bert.py --write FOLDER   # FOLDER/classification and FOLDER/masked-text, as
                                         # Transformers writes checkpoints
    python make_bert.py --check FOLDER   # compares the scores of such a checkpoint, whoever wrote
                                         # it, with the stored ones

bert.json         for each model its config.json; three ragged batches; losses of five steps
bert.safetensors  initial.* of both models, and for each scores and final.*: computed in float64 and
                  stored in F32, by Transformers' names. Initial parameters are F32 numbers.

Transformers sees each batch padded, with an attention_mask; the C++ sees it ragged.
"""

import json
import pathlib
import sys
import tempfile

import safetensors.torch
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from make_reference import FOLDER, adamw, relative, rows_of, values, write_json

CONFIG = dict(vocab_size=29, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
              intermediate_size=48, max_position_embeddings=12, type_vocab_size=2,
              hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=1e-12,
              num_labels=3, id2label={0: "世界", 1: "sport", 2: "\"x\""},
              label2id={"世界": 0, "sport": 1, "\"x\"": 2})
MODELS = {"classification": BertForSequenceClassification, "masked-text": BertForMaskedLM}
PAD, MASK, FIRST_WORD = 0, 4, 5
ORDER = [0, 1, 2, 0, 1]
LEARNING_RATE, WEIGHT_DECAY, SEED = 1e-3, 0.1, 10


# ---- Batches ------------------------------------------------------------------------------------

def make_batch(generator):
    """Rows of 1 ... 12 tokens in any order, of which the later ones may be of the second kind; a
    third of their tokens is hidden, at least one."""
    def draw(n):
        return torch.randint(n, (1,), generator=generator).item()

    batch = dict(tokens=[], segments=[], offsets=[0], labels=[], masked=[], targets=[])
    for length in torch.randperm(CONFIG["max_position_embeddings"], generator=generator) + 1:
        length = length.item()
        hidden = torch.randperm(length, generator=generator)[:max(1, length // 3)].tolist()
        first_kind = 1 + draw(length)
        for place in range(length):
            token = FIRST_WORD + draw(CONFIG["vocab_size"] - FIRST_WORD)
            if place in hidden:
                batch["masked"].append(len(batch["tokens"]))
                batch["targets"].append(token)
            batch["tokens"].append(MASK if place in hidden else token)
            batch["segments"].append(int(place >= first_kind))
        batch["offsets"].append(len(batch["tokens"]))
        batch["labels"].append(draw(CONFIG["num_labels"]))
    return batch


def scores(name, model, batch):
    """Of labels [B,C], or of tokens at the hidden places [M,V]."""
    tokens = nn.utils.rnn.pad_sequence(rows_of(batch), batch_first=True, padding_value=PAD)
    segments = nn.utils.rnn.pad_sequence(rows_of(batch | dict(tokens=batch["segments"])),
                                         batch_first=True)
    present = tokens != PAD
    found = model(input_ids=tokens, token_type_ids=segments, attention_mask=present.long()).logits
    return found if name == "classification" else found[present][batch["masked"]]


def scores_row_by_row(name, model, batch):
    rows = zip(rows_of(batch), rows_of(batch | dict(tokens=batch["segments"])))
    found = [model(input_ids=tokens[None], token_type_ids=segments[None]).logits
             for tokens, segments in rows]
    if name == "classification":
        return torch.cat(found)
    return torch.cat([logits[0] for logits in found])[batch["masked"]]


def loss_of(name, model, batch):
    targets = batch["labels" if name == "classification" else "targets"]
    return nn.functional.cross_entropy(scores(name, model, batch), torch.tensor(targets))


# ---- Models and steps ---------------------------------------------------------------------------

def new_model(name):
    return MODELS[name](BertConfig(**CONFIG, attn_implementation="eager")).eval()


def make_initial():
    """F32 numbers for every tensor of both models: normal with deviation 0.2, around 1 for gains."""
    generator = torch.Generator().manual_seed(SEED)
    initial = {}
    for name in MODELS:
        for key, p in new_model(name).named_parameters():
            if key not in initial:
                is_gain = key.endswith("LayerNorm.weight")
                initial[key] = 0.2 * torch.randn(p.shape, generator=generator) + float(is_gain)
    return initial


def make_model(name, initial, dtype):
    model = new_model(name).to(dtype)
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.copy_(initial[key])
    return model


def train(name, model, batches):
    """Five steps of AdamW; returns the losses before each. Biases and norms do not decay."""
    optimizer = adamw(model, LEARNING_RATE, WEIGHT_DECAY)
    losses = []
    for number in ORDER:
        loss = loss_of(name, model, batches[number])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ---- Checks -------------------------------------------------------------------------------------

def check_model(name, model, batch):
    """Padding changes nothing; gradients are large, except that of the keys' bias, which is 0."""
    found = scores(name, model, batch)
    assert (found - scores_row_by_row(name, model, batch)).abs().max() < 1e-12
    assert found.argmax(1).unique().numel() > 1
    model.zero_grad()
    loss_of(name, model, batch).backward()
    for key, p in model.named_parameters():
        if key.endswith("key.bias"):
            assert p.grad.abs().max() < 1e-15
        else:
            assert p.grad.abs().max() > 1e-3, (name, key, p.grad.abs().max())


def check_conditioning(name, initial, batches, final):
    """Transformers in float32 comes within half of what the C++ is allowed."""
    model = make_model(name, initial, torch.float32)
    train(name, model, batches)
    worst = max(relative(found, final[key]) for key, found in values(model).items()
                if not key.endswith("key.bias"))
    print(f"{name}: float32 Transformers is off by {worst:.2e} after {len(ORDER)} steps")
    assert worst < 5e-6


# ---- What is written ----------------------------------------------------------------------------

def config_json(model):
    """As Transformers writes it."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        return json.loads((pathlib.Path(folder) / "config.json").read_text())


def make_reference():
    generator = torch.Generator().manual_seed(SEED)
    batches = [make_batch(generator) for _ in range(3)]
    assert {t for batch in batches for t in batch["tokens"]} == \
        set(range(MASK, CONFIG["vocab_size"]))
    initial = make_initial()
    stored = {f"initial.{key}": value for key, value in initial.items()}
    configs, losses = {}, {}
    for name in MODELS:
        model = make_model(name, initial, torch.float64)
        check_model(name, model, batches[0])
        stored[f"{name}.scores"] = scores(name, model, batches[0]).detach()
        losses[name] = train(name, model, batches)
        check_conditioning(name, initial, batches, values(model))
        stored |= {f"{name}.final.{key}": value for key, value in values(model).items()}
        configs[name] = config_json(new_model(name))
    stored = {key: value.float().contiguous() for key, value in stored.items()}
    (FOLDER / "bert.safetensors").write_bytes(safetensors.torch.save(stored))
    write_json("bert.json", dict(configs=configs, batches=batches, order=ORDER,
                                 learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY,
                                 losses=losses))


def write_checkpoints(folder):
    initial = make_initial()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"w{i}" for i in range(FIRST_WORD, CONFIG["vocab_size"])]
    for name in MODELS:
        make_model(name, initial, torch.float32).save_pretrained(folder / name)
        (folder / name / "vocab.txt").write_text("\n".join(words) + "\n")


def check_checkpoint(folder):
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    name = next(name for name in MODELS if MODELS[name].__name__ == architecture)
    model, info = MODELS[name].from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    batch = json.loads((FOLDER / "bert.json").read_text())["batches"][0]
    expected = safetensors.torch.load_file(FOLDER / "bert.safetensors")[f"{name}.scores"]
    with torch.no_grad():
        worst = (scores(name, model.eval(), batch) - expected).abs().max().item()
    print(f"{folder}: {name}, labels {list(model.config.id2label.values())}, largest difference of "
          f"scores {worst:.2e}")
    assert worst < 1e-4


def main():
    torch.set_num_threads(1)
    action, folder = (sys.argv[1:] + ["", ""])[:2]
    if action == "--write":
        write_checkpoints(pathlib.Path(folder))
    elif action == "--check":
        check_checkpoint(pathlib.Path(folder))
    else:
        make_reference()


if __name__ == "__main__":
    main()
