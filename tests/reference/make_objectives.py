"""What PyTorch computes for each objective, loss and head, stored for tests/test_reference.cpp.

    python make_objectives.py       # writes the files beside itself

objectives.json         sizes, batches, rates of learning, and the loss of each of ten steps
objectives.safetensors  initial parameters, and projections of gradients and of final parameters

README.md has the formats. A case is (objective, model, loss). The ten steps of AdamW take the
batches in a stored order, at stored rates: items that occur in batch 0 alone are untouched for
eight steps in between, and the last item is never touched.
"""

import collections
import itertools
import math

import safetensors.torch
import torch
from torch import nn

import torch_module
from make_reference import (FOLDER, MASK, MODELS, PAD, SPECIAL, STEPS, adamw, key_part, rows_of,
                            values, write_json)

SMALL = dict(num_items=11, hidden_size=8, num_layers=2, num_heads=2, max_length=7)
NEGATIVES, OWN_NEGATIVES, GBCE_T = 5, 3, 0.75  # K of a batch, R of an asked place, t
ORDER = [0, 1, 2, 1, 2, 1, 2, 1, 2, 0]
PEAK_RATE, WARMUP_STEPS, SMALL_DECAY = 5e-3, 4, 0.1
RATES = [PEAK_RATE * min((step + 1) / WARMUP_STEPS, (STEPS - step) / (STEPS - WARMUP_STEPS))
         for step in range(STEPS)]
PROJECTION = [1.0, -0.7, 1.3, 0.9, -1.1, 0.6, -1.4, 1.2]
OBJECTIVES = ["cloze", "causal"]
ITEM_LOSSES = ["softmax", "sampled-softmax", "bce", "gbce"]
LARGEST_LOG_SCALE, BEYOND = math.log(100), 5.0
SMALL_SEED = 1


class Matching(torch_module.Bert4Rec):
    """The encoder, whose vector at an asked place is compared with rows of the item table."""

    def __init__(self, **config):
        super().__init__(**config)
        del self.output
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def forward(self, tokens, padding=None):
        return self.encode(tokens, padding)

    def scores(self, users, items):
        """exp(log_scale) * cosine of users [...,H] and the rows of items [...]."""
        table = self.item_embedding.weight[SPECIAL:]
        users, vectors = (nn.functional.normalize(v, dim=-1, eps=1e-8) for v in (users, table))
        scale = self.log_scale.clamp(max=LARGEST_LOG_SCALE).exp()
        return scale * (users * vectors[items]).sum(-1)


SMALL_MODELS = MODELS | {"matching": Matching}
# Not again the cases of reference.json. What bce does, it does for one model as for the other.
CASES = [(objective, model, loss) for objective in OBJECTIVES for model in MODELS
         for loss in ITEM_LOSSES
         if (objective, loss) != ("cloze", "softmax") and (model, loss) != ("paper", "bce")]
CASES += [(objective, "matching", "matching") for objective in OBJECTIVES]


# ---- Batches ------------------------------------------------------------------------------------

def pick(values, generator):
    return values[torch.randint(len(values), (1,), generator=generator).item()]


def make_row(objective, pool, length, asks, generator):
    """Tokens, and (place, target, own negatives) of each asked place. At least two items of the
    pool are in no place of the row's history; own negatives are drawn from them."""
    order = [pool[i] for i in torch.randperm(len(pool), generator=generator).tolist()]
    history = list(itertools.islice(itertools.cycle(order[:-2]), length + (objective == "causal")))
    shown = [item + SPECIAL for item in history[:length]]
    if objective == "causal":
        targets = dict(enumerate(history[1:]))
    else:
        hidden = torch.randperm(length, generator=generator).tolist()
        targets = {t: history[t] for t in sorted(hidden[:max(1, round(0.3 * length)) * asks])}
        shown = [MASK if t in targets else token for t, token in enumerate(shown)]
    unseen = [item for item in pool if item not in history]
    asked = [(t, target, [pick(unseen, generator) for _ in range(OWN_NEGATIVES)])
             for t, target in targets.items()]
    return shown, asked


def draw_shared_negatives(batch, pool, generator):
    """K items with chances that fall with their number: two are the same, and one is the target of
    some places but not of all. log_expected is stored as an F32 number."""
    chances = torch.arange(1, SMALL["num_items"] + 1, dtype=torch.float64) ** -0.75
    chances /= chances.sum()
    targets = collections.Counter(batch["targets"])
    while True:
        drawn = torch.multinomial(chances, NEGATIVES, True, generator=generator).tolist()
        hits = sum(targets[item] for item in set(drawn))
        if set(drawn) <= set(pool) and len(set(drawn)) == NEGATIVES - 1 and \
                0 < hits < len(batch["targets"]):
            break
    batch["negatives"] = drawn
    batch["log_expected"] = (NEGATIVES * chances[drawn]).log().float().tolist()


def make_small_batch(objective, pool, generator):
    """Rows of 1 ... 7 tokens in any order; for Cloze, in their middle, one of 4 without a MASK."""
    rows = [(n + 1, 1) for n in torch.randperm(SMALL["max_length"], generator=generator).tolist()]
    if objective == "cloze":
        rows.insert(3, (4, 0))
    batch = dict(tokens=[], offsets=[0], asked=[], targets=[], own_negatives=[])
    for length, asks in rows:
        shown, asked = make_row(objective, pool, length, asks, generator)
        for place, target, own in asked:
            batch["asked"].append(len(batch["tokens"]) + place)
            batch["targets"].append(target)
            batch["own_negatives"].append(own)
        batch["tokens"] += shown
        batch["offsets"].append(len(batch["tokens"]))
    draw_shared_negatives(batch, pool, generator)
    return batch


def make_small_batches(objective, generator):
    """Items 0 ... 9 in the first, 0 ... 6 in the others."""
    return [make_small_batch(objective, list(range(n)), generator) for n in (10, 7, 7)]


# ---- Losses -------------------------------------------------------------------------------------

def asked_vectors(model, batch):
    """What the model gives for the asked places: scores [M,I], or vectors [M,H] to match."""
    tokens = nn.utils.rnn.pad_sequence(rows_of(batch), batch_first=True, padding_value=PAD)
    found = model(tokens, tokens == PAD)[tokens != PAD][batch["asked"]]
    return found if isinstance(model, Matching) else found[:, SPECIAL:]


def log_logistic(x):  # softplus(x) = log(1 + e^x), exact for large x too
    return -nn.functional.logsigmoid(-x)


def sampled_losses(name, scores, batch):
    """[M], of scores [M,I]."""
    targets, negatives = torch.tensor(batch["targets"]), torch.tensor(batch["negatives"])
    s_target, s = scores.gather(1, targets[:, None]), scores[:, negatives]
    hit = targets[:, None] == negatives
    if name == "sampled-softmax":
        s = s - torch.tensor(batch["log_expected"], dtype=s.dtype)
        return torch.cat([s_target, s.masked_fill(hit, -math.inf)], 1).logsumexp(1) - s_target[:, 0]
    K = len(batch["negatives"])
    beta = 1 - (GBCE_T if name == "gbce" else 0.0) * (1 - K / (SMALL["num_items"] - 1))
    balance = math.log(K / beta)  # a shift of all scores: see chapter 12
    wrong = log_logistic(s - balance).masked_fill(hit, 0.0).sum(1)
    return (beta * log_logistic(balance - s_target[:, 0]) + wrong) / (K + 1)


def matching_loss(model, users, batch):
    items = torch.cat([torch.tensor(batch["targets"])[:, None],
                       torch.tensor(batch["own_negatives"])], 1)
    scores = model.scores(users[:, None], items)
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1
    return nn.functional.binary_cross_entropy_with_logits(scores, labels)


def small_loss(model, name, batch):
    found = asked_vectors(model, batch)
    if name == "matching":
        return matching_loss(model, found, batch)
    if name == "softmax":
        return nn.functional.cross_entropy(found, torch.tensor(batch["targets"]))
    return sampled_losses(name, found, batch).mean()


# ---- Models and steps ---------------------------------------------------------------------------

def small_initial():
    """F32 numbers for every tensor of the three models, by name: as in make_model(), and the scale
    of the matching head at its start."""
    generator = torch.Generator().manual_seed(SMALL_SEED)
    initial = {}
    for model_class in SMALL_MODELS.values():
        for name, p in model_class(**SMALL, dropout=0.0).named_parameters():
            if name not in initial and name != "log_scale":
                is_gain = "norm" in name and name.endswith("weight")
                initial[name] = 0.2 * torch.randn(p.shape, generator=generator) + float(is_gain)
    return initial | {"log_scale": torch.tensor([math.log(1 / 0.07)])}


def tensors_by_part():
    """Names of the encoder's tensors, and of those that each model adds."""
    names = {key: [name for name, _ in model(**SMALL, dropout=0.0).named_parameters()]
             for key, model in SMALL_MODELS.items()}
    encoder = [name for name in names["torch"] if name in names["matching"]]
    return dict(encoder=encoder) | {key: [name for name in all_of if name not in encoder]
                                    for key, all_of in names.items()}


def names_of(model):
    parts = tensors_by_part()
    return parts["encoder"] + parts[model]


def make_small_model(case, initial, dtype=torch.float64):
    model = SMALL_MODELS[case[1]](**SMALL, dropout=0.0, objective=case[0]).to(dtype)
    model.load_state_dict({name: initial[name] for name in model.state_dict()})
    return model


def small_gradients(model, name, batch):
    model.zero_grad()
    small_loss(model, name, batch).backward()
    return {key: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for key, p in model.named_parameters()}


def small_train(model, name, batches):
    """The losses before each step. Every row moves at every step, as PyTorch has it: by its moments
    and its decay where its gradient is 0."""
    optimizer = adamw(model, PEAK_RATE, SMALL_DECAY)
    losses = []
    for number, rate in zip(ORDER, RATES):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = small_loss(model, name, batches[number])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def projected(tensors, names):
    """Each tensor as a flat array, cut into pieces of H numbers (the last may be shorter), each
    piece times PROJECTION: a number for each row of the item table."""
    found = []
    for name in names:
        flat = tensors[name].flatten()
        pieces = nn.functional.pad(flat, (0, -len(flat) % len(PROJECTION)))
        found.append(pieces.view(-1, len(PROJECTION)) @ torch.tensor(PROJECTION, dtype=flat.dtype))
    return torch.cat(found)


# ---- Checks -------------------------------------------------------------------------------------

def plain_loss(model, name, batch):
    """The formulas again, place by place in Python's own numbers."""
    found = asked_vectors(model, batch).tolist()
    table = model.item_embedding.weight[SPECIAL:].tolist()
    total = 0.0
    for place, target in enumerate(batch["targets"]):
        if name == "matching":
            scale = math.exp(min(model.log_scale.item(), LARGEST_LOG_SCALE))
            total += plain_matching(found[place], table, scale, target,
                                    batch["own_negatives"][place])
            continue
        s = found[place]
        others = [j for j in range(NEGATIVES) if batch["negatives"][j] != target]
        if name == "softmax":
            total += math.log(sum(map(math.exp, s))) - s[target]
        elif name == "sampled-softmax":
            total -= s[target]
            total += math.log(math.exp(s[target]) + sum(
                math.exp(s[batch["negatives"][j]] - batch["log_expected"][j]) for j in others))
        else:
            alpha = NEGATIVES / (SMALL["num_items"] - 1)
            beta = 1 - GBCE_T * (1 - alpha) if name == "gbce" else 1
            odds = NEGATIVES / beta
            wrong = sum(math.log(1 + math.exp(s[batch["negatives"][j]]) / odds) for j in others)
            total += (beta * math.log(1 + odds * math.exp(-s[target])) + wrong) / (NEGATIVES + 1)
    return total / len(batch["targets"])


def plain_matching(user, table, scale, target, negatives):
    def length(v):
        return max(math.sqrt(sum(x * x for x in v)), 1e-8)

    def score(item):
        product = sum(a * b for a, b in zip(user, table[item]))
        return scale * product / length(user) / length(table[item])

    terms = [math.log(1 + math.exp(-score(target)))]
    terms += [math.log(1 + math.exp(score(item))) for item in negatives]
    return sum(terms) / len(terms)


def check_small_batches(batches):
    """Who occurs where; and that own negatives are in no place of their row's history."""
    seen = []
    for batch in batches:
        items = {token - SPECIAL for token in batch["tokens"] if token != MASK}
        assert len(batch["asked"]) == len(batch["targets"]) == len(batch["own_negatives"])
        seen.append(items | set(batch["targets"]) | set(batch["negatives"]) |
                    set(itertools.chain(*batch["own_negatives"])))
        for begin, end in itertools.pairwise(batch["offsets"]):
            places = [i for i, at in enumerate(batch["asked"]) if begin <= at < end]
            history = {token - SPECIAL for token in batch["tokens"][begin:end]}
            history |= {batch["targets"][i] for i in places}
            assert not any(history & set(batch["own_negatives"][i]) for i in places)
    assert seen[0] == set(range(10)) and seen[1] | seen[2] == set(range(7))


def check_objective(model, batch):
    """Padding changes nothing; with the causal objective, nor does what comes later."""
    padded = asked_vectors(model, batch)
    single = torch.cat([model(row[None])[0] for row in rows_of(batch)])[batch["asked"]]
    single = single if isinstance(model, Matching) else single[:, SPECIAL:]
    assert (padded - single).abs().max() < 1e-12
    row = max(rows_of(batch), key=len)
    other = row.clone()
    other[-1] = SPECIAL + (row[-1] - SPECIAL + 1) % SMALL["num_items"]
    change = (model(row[None]) - model(other[None]))[0].abs().amax(1)
    assert change[-1] > 1e-3
    assert change[:-1].max() < 1e-15 if model.causal else change[:-1].min() > 1e-6


def check_differences(model, name, batch, gradient):
    """Central differences in a random direction of each tensor."""
    generator = torch.Generator().manual_seed(SMALL_SEED)
    worst, step = 0.0, 1e-6
    for key, p in model.named_parameters():
        direction = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        start, at = p.detach().clone(), []
        with torch.no_grad():
            for sign in (1, -1):
                p.copy_(start + sign * step * direction)
                at.append(small_loss(model, name, batch).item())
            p.copy_(start)
        error = abs((at[0] - at[1]) / (2 * step) - (gradient[key] * direction).sum().item())
        worst = max(worst, error)
    assert worst < 5e-9, (name, worst)
    return worst


def check_full_set(model, batch):
    """With all other items of a place as its negatives and log(K q) = 0, the sampled softmax is the
    full one, in value and gradient."""
    found = asked_vectors(model, batch)
    full = nn.functional.cross_entropy(found, torch.tensor(batch["targets"]), reduction="none")
    everything = batch | dict(negatives=list(range(SMALL["num_items"])),
                              log_expected=[0.0] * SMALL["num_items"])
    sampled = sampled_losses("sampled-softmax", found, everything)
    assert (full - sampled).abs().max() < 1e-14
    slopes = [torch.autograd.grad(loss.mean(), found, retain_graph=True)[0]
              for loss in (full, sampled)]
    assert (slopes[0] - slopes[1]).abs().max() < 1e-15


def check_lazy_is_wrong(initial, final):
    """A row that is never touched has decayed, by more than the C++ is allowed to be off."""
    row = SPECIAL + SMALL["num_items"] - 1
    before, after = (t["item_embedding.weight"][row].double() for t in (initial, final))
    left = math.prod(1 - rate * SMALL_DECAY for rate in RATES)
    assert (after - left * before).abs().max() < 1e-15 and left < 1 - 1e-3


def size_of(tensor):
    """The largest sum of |x p| over a piece: errors of projections are relative to it, since terms
    may cancel where their rounding errors do not."""
    weights = torch.tensor(PROJECTION, dtype=tensor.dtype).repeat(tensor.numel())
    terms = (tensor.flatten() * weights[:tensor.numel()]).abs()
    return max(piece.sum().item() for piece in terms.split(len(PROJECTION)))


def worst_projection(found, expected, names):
    """Without the keys' bias, whose gradient is 0."""
    worst = 0.0
    for name in names:
        a, b = (projected(tensors, [name]) for tensors in (found, expected))
        if name.endswith("in_proj_bias"):
            a, b = (torch.cat(t.chunk(3)[::2]) for t in (a, b))
        worst = max(worst, (a.double() - b).abs().max().item() / size_of(expected[name]))
    return worst


def check_float(case, initial, batches, losses, gradient, final):
    """As check_conditioning(): of what is stored, PyTorch's float32 is off by less than half of
    what the C++ is allowed."""
    model = make_small_model(case, initial, torch.float32)
    names = names_of(case[1])
    found = small_gradients(model, case[2], batches[0])
    worst = worst_projection(found, gradient, names)
    model.zero_grad()
    found_losses = small_train(model, case[2], batches)
    worst = max(worst, worst_projection(values(model), final, names),
                max(abs(a / b - 1) for a, b in zip(found_losses, losses)))
    assert worst < 5e-6, (case, worst)
    return worst


def check_case(case, initial, batch, gradient):
    model = make_small_model(case, initial)
    check_objective(model, batch)
    assert abs(small_loss(model, case[2], batch).item() - plain_loss(model, case[2], batch)) < 1e-13
    if case[1] != "matching":
        check_full_set(model, batch)
    for key, value in gradient.items():
        assert value.abs().max() > 1e-4, (case, key, value.abs().max())
        if key.endswith("in_proj_bias"):
            assert key_part(value).abs().max() < 1e-15
    return check_differences(model, case[2], batch, gradient)


# ---- Files --------------------------------------------------------------------------------------

def make_case(case, initial, batches):
    """Returns losses and {"gradient": projections, "final": projections}."""
    model = make_small_model(case, initial)
    names = names_of(case[1])
    gradient = small_gradients(model, case[2], batches[0])
    differences = check_case(case, initial, batches[0], gradient)
    losses = small_train(model, case[2], batches)
    final = values(model)
    if case[2] != "softmax":
        check_lazy_is_wrong(initial, final)
    off = check_float(case, initial, batches, losses, gradient, final)
    print(f"{'.'.join(case)}: differences {differences:.1e}, float32 {off:.1e}")
    return losses, {"gradient": projected(gradient, names), "final": projected(final, names)}


def make_beyond(initial, batches):
    """A scale beyond its bound counts as 100 and has no gradient."""
    case = ("causal", "matching", "matching")
    model = make_small_model(case, initial | {"log_scale": torch.tensor([BEYOND])})
    gradient = small_gradients(model, "matching", batches[0])
    assert gradient["log_scale"].item() == 0
    loss = small_loss(model, "matching", batches[0]).item()
    assert abs(loss - plain_loss(model, "matching", batches[0])) < 1e-13
    return dict(log_scale=BEYOND, loss=loss), projected(gradient, names_of("matching"))


def all_scores(case, initial, batch):
    """[M,I], before the first step"""
    model = make_small_model(case, initial)
    found = asked_vectors(model, batch)
    if isinstance(model, Matching):
        found = model.scores(found[:, None], torch.arange(SMALL["num_items"]))
    return found.detach()


def make_objectives():
    """Writes objectives.json and objectives.safetensors."""
    generator = torch.Generator().manual_seed(SMALL_SEED)
    batches = {objective: make_small_batches(objective, generator) for objective in OBJECTIVES}
    for three in batches.values():
        check_small_batches(three)
    initial = small_initial()
    stored = {f"initial.{name}": value for name, value in initial.items()}
    losses = {}
    for case in CASES:
        key = ".".join(case if case[1] != case[2] else case[:2])
        losses[key], arrays = make_case(case, initial, batches[case[0]])
        stored |= {f"{key}.{name}": value for name, value in arrays.items()}
        stored[f"{case[0]}.{case[1]}.scores"] = all_scores(case, initial, batches[case[0]][0])
    beyond, stored["beyond.gradient"] = make_beyond(initial, batches["causal"])
    write_json("objectives.json", dict(
        model=SMALL, gbce_t=GBCE_T, weight_decay=SMALL_DECAY, rates=RATES, order=ORDER,
        projection=PROJECTION, tensors=tensors_by_part(), batches=batches, losses=losses,
        beyond=beyond))
    stored = {key: value.float().contiguous() for key, value in stored.items()}
    (FOLDER / "objectives.safetensors").write_bytes(safetensors.torch.save(stored))


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_objectives()
