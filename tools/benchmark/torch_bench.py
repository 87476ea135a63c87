"""The shapes of tools/benchmark in PyTorch, measured in turns with it.

    python torch_bench.py --benchmark ../../build/benchmark --shapes seed,ml-1m,inference --rounds 5

Sizes, row lengths and the number of masked tokens are read from `benchmark --json`, so both do the
same work. The machine may be shared: each round measures ours and PyTorch's one behind the other,
and the ratios are taken inside a round. They are also given in processor time, of all threads
together. On a busy machine trust only `--threads 1` in processor time: with more threads, PyTorch's
spin while they wait for one that others have put aside (its processor time grows many times over),
ours yield (their time on the wall does), and neither says how fast the work itself is.
On a GPU (--device cuda) both compute there, ours with `benchmark --gpu`; with --half in BF16, PyTorch
by autocast and ours with --fp16.
After the first round only the seed system's way and the two fastest go on.

Ways of a training step (forward, loss, backward, AdamW), each eager and, unless --no-compile, by
torch.compile:
  full      nn.TransformerEncoder, logits at every token, cross entropy that ignores the unmasked
            ones, AdamW as it comes: the seed system's way
  gathered  nn.TransformerEncoder, logits at the masked tokens only, fused AdamW
  packed    layers written by hand: scaled_dot_product_attention, linear layers without padding,
            behind the last attention only masked tokens; fused AdamW
Ways of inference (the ten best unseen items): the same three, under inference_mode.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

for name in [name for name in os.environ if name.startswith("OPENBLAS_")]:
    del os.environ[name]

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../tests/reference"))
from torch_module import Bert4Rec

MASK = 1
HALF = False


class Rows:
    """Ragged rows of random items, padded on the right. `at` are the places of real tokens in the
    padded [B,n], `masked` those of the masked ones, `masked_packed` the same among real tokens."""

    def __init__(self, lengths, num_items, masked_of):  # masked_of(n): places in a row of n
        self.size = (len(lengths), max(lengths))
        self.ragged = min(lengths) < max(lengths)
        lengths = torch.tensor(lengths)
        places = torch.arange(self.size[1])
        self.padding = places[None, :] >= lengths[:, None]
        self.items = torch.randint(num_items, self.size)
        self.tokens = (self.items + 3).masked_fill(self.padding, 0)
        masked = torch.zeros(self.size, dtype=torch.bool)
        for row, n in enumerate(lengths.tolist()):
            masked[row, masked_of(n)] = True
        self.tokens[masked] = MASK
        self.at = (~self.padding).flatten().nonzero().squeeze(1)
        self.masked = masked.flatten().nonzero().squeeze(1)
        self.masked_packed = masked.flatten()[self.at].nonzero().squeeze(1)
        self.positions = places.expand(self.size).flatten()[self.at]
        self.targets = self.items.flatten()[self.masked]
        self.all_targets = (self.items + 3).masked_fill(~masked, -100)
        self.key_padding = self.padding if self.ragged else None
        # scaled_dot_product_attention has it the other way round: True takes part
        self.attend = ~self.padding[:, None, None, :] if self.ragged else None


def packed_encode(model, rows):
    """Vectors [M,H] of the masked tokens. Linear layers see the N real tokens only, and behind the
    last attention the M masked ones."""
    B, n = rows.size
    drop = lambda x: F.dropout(x, model.dropout.p, model.training)
    norm = lambda x, of: F.layer_norm(x, x.shape[-1:], of.weight, of.bias)
    x = F.embedding(rows.tokens.flatten()[rows.at], model.item_embedding.weight)
    x = x + F.embedding(rows.positions, model.position_embedding.weight)
    x = drop(norm(x, model.embedding_norm))
    H = x.shape[1]
    for i, layer in enumerate(model.encoder.layers):
        attention = layer.self_attn
        qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        if rows.ragged:
            qkv = qkv.new_zeros(B * n, 3 * H).index_copy(0, rows.at, qkv)
        heads = attention.num_heads
        q, k, v = qkv.view(B, n, 3, heads, H // heads).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(
            q, k, v, attn_mask=rows.attend, dropout_p=attention.dropout if model.training else 0.0)
        context = context.transpose(1, 2).reshape(B * n, H)
        if i + 1 == len(model.encoder.layers):
            context, x = context[rows.masked], x[rows.masked_packed]
        elif rows.ragged:
            context = context[rows.at]
        a = norm(x + drop(attention.out_proj(context)), layer.norm1)
        h = layer.linear2(drop(F.gelu(layer.linear1(a))))
        x = norm(a + drop(h), layer.norm2)
    return x


def full_logits(model, rows):  # [B,n,V]
    return model(rows.tokens, rows.key_padding)


def masked_vectors(model, rows, way):
    if way == "packed":
        return packed_encode(model, rows)
    return model.encode(rows.tokens, rows.key_padding).flatten(0, 1)[rows.masked]


def in_precision(function):
    """With --half: products in BF16."""
    def call(*words):
        with torch.autocast("cuda", torch.bfloat16, enabled=HALF):
            return function(*words)
    return call


@in_precision
def item_scores(model, rows, way):  # [M,num_items]
    if way == "full":
        return full_logits(model, rows).flatten(0, 1)[rows.masked][:, 3:]
    output = model.output
    return F.linear(masked_vectors(model, rows, way), output.weight[3:], output.bias[3:])


@in_precision
def loss_of(model, rows, way):
    if way == "full":
        return F.cross_entropy(full_logits(model, rows).flatten(0, 1), rows.all_targets.flatten())
    return F.cross_entropy(item_scores(model, rows, way), rows.targets)


def adamw(model, way):
    if way == "full":
        return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    try:
        return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    except RuntimeError:  # an older PyTorch, without a fused one for the CPU
        return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, foreach=True)


def make_model(config):
    torch.manual_seed(1)
    return Bert4Rec(config["num_items"], config["hidden_size"], config["num_layers"],
                    config["num_heads"], config["max_length"], config["dropout"])


def training_rows(shape):
    torch.manual_seed(2)
    share = shape["mask_probability"]
    rows = Rows(shape["lengths"], shape["model"]["num_items"],
                lambda n: torch.randperm(n)[:max(1, int(share * n + 0.5))])
    assert len(rows.masked) == shape["masked"] and len(rows.at) == shape["tokens"]
    return rows


def training_step(shape, way, compiled):
    rows, model = training_rows(shape), make_model(shape["model"])
    model.train()
    optimizer = adamw(model, way)
    loss = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def step():
        optimizer.zero_grad()
        loss(model, rows, way).backward()
        optimizer.step()
    return step


def inference_call(shape, way, compiled):
    """Top ten of shape["users"] users in batches of 50, with probabilities, seen items left out."""
    config, users, batch = shape["model"], shape["users"], min(50, shape["users"])
    assert users % batch == 0
    torch.manual_seed(2)
    length = config["max_length"]
    batches = [Rows([length] * batch, config["num_items"], lambda n: [n - 1])
               for _ in range(users // batch)]
    model = make_model(config).eval()
    scores_of = torch.compile(item_scores, dynamic=False) if compiled else item_scores

    @torch.inference_mode()
    def call():
        for rows in batches:
            scores = scores_of(model, rows, way)
            unseen = scores.scatter(1, rows.items[:, :-1], float("-inf"))
            best = unseen.topk(min(10, config["num_items"]))
            (best.values - scores.logsumexp(1, keepdim=True)).exp()
    return call


def check_ways(shape):
    """All ways compute the same loss (dropout off)."""
    rows, model = training_rows(shape), make_model(shape["model"]).eval()
    model.output.weight.data[:3] = 0  # special rows, which only "full" scores:
    model.output.bias.data[:3] = -1e9  # take no part
    with torch.no_grad():
        losses = [loss_of(model, rows, way).item() for way in ("full", "gathered", "packed")]
    assert max(losses) - min(losses) < (1e-2 if HALF else 1e-4) * losses[0], losses


def measured(call, seconds):
    times, processor = [], time.process_time()
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        call()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    processor = time.process_time() - processor
    return {"wall": 1e3 * statistics.median(times), "processor": 1e3 * processor / len(times)}


def ours(arguments, shape, seconds):
    command = [arguments.benchmark, "--json", "--shape", shape, "--seconds", str(seconds),
               "--threads", str(arguments.threads)]
    if arguments.data:
        command += ["--data", arguments.data]
    if arguments.device == "cuda":
        command += ["--gpu"] + ["--fp16"] * arguments.half
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)["shapes"][shape]


def make_calls(arguments, shape):
    """What can be measured, warmed up, by name; and why the rest cannot."""
    calls, failures = {}, {}
    torch.compiler.reset()  # of the shape before
    make = inference_call if "users" in shape else training_step
    for way in ("full", "gathered", "packed"):
        for compiled in (False, True) if not arguments.no_compile else (False,):
            name = way + (" compiled" if compiled else "")
            try:
                call = make(shape, way, compiled)
                call()
                call()
                calls[name] = call
            except Exception as error:  # torch.compile fails in many ways: say so and go on
                failures[name] = (str(error).strip() or repr(error)).splitlines()[0]
    return calls, failures


def summary(values):
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def compare(arguments, name):
    shape = ours(arguments, name, 0)
    if "users" not in shape:
        check_ways(shape)
    calls, failures = make_calls(arguments, shape)
    rounds = []
    for _ in range(arguments.rounds):
        result = ours(arguments, name, arguments.seconds)
        times = {"ours": {"wall": result["milliseconds"]["median"],
                          "processor": result["processor_milliseconds"]}}
        for way, call in calls.items():
            times[way] = measured(call, arguments.seconds)
        rounds.append(times)
        fastest = sorted(calls, key=lambda way: rounds[0][way]["wall"])[:2]
        calls = {way: call for way, call in calls.items() if way in fastest or way == "full"}
    milliseconds = {clock: {way: summary([times[way][clock] for times in rounds if way in times])
                            for way in rounds[0]} for clock in ("wall", "processor")}
    best = min(calls, key=lambda way: milliseconds["wall"][way]["median"])
    ratio = lambda way, clock: summary(
        [times[way][clock] / times["ours"][clock] for times in rounds])
    return {"milliseconds": milliseconds, "failures": failures, "best": best,
            "best_to_ours": {clock: ratio(best, clock) for clock in milliseconds},
            "seed_to_ours": {clock: ratio("full", clock) for clock in milliseconds}}


def peak_memory(arguments, shape, way):
    """MiB of a fresh process that does three steps."""
    command = [sys.executable, __file__, "--memory-of", way, "--threads", str(arguments.threads)]
    done = subprocess.run(command, input=json.dumps(shape), check=True, stdout=subprocess.PIPE,
                          text=True)
    return float(done.stdout)


def memory_of(way):
    if way != "import":
        step = training_step(json.load(sys.stdin), way, False)
        for _ in range(3):
            step()
    with open("/proc/self/status") as status:  # (ru_maxrss would count the parent before exec)
        print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024)


def compare_memory(arguments):
    shape = ours(arguments, "seed", 0)
    result = {"ours": shape["peak_memory_mib"]}
    for way in ("full", "gathered", "packed", "import"):
        result["torch alone" if way == "import" else way] = peak_memory(arguments, shape, way)
    return result


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", default="build/benchmark", help="the program")
    parser.add_argument("--shapes", default="seed,ml-1m,inference",
                        help="of seed, ml-1m, large, bert-base, inference (or latency, throughput)")
    parser.add_argument("--data", help="data folder from which ml-1m takes its rows")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--half", action="store_true", help="with cuda: products in BF16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement in a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--memory", action="store_true", help="also compare memory, shape seed")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def text(numbers):
    return f"{numbers['median']:.2f} ({numbers['lowest']:.2f} ... {numbers['highest']:.2f})"


def print_shape(name, result):
    print(name)
    wall, processor = result["milliseconds"]["wall"], result["milliseconds"]["processor"]
    for way in wall:
        print(f"  {way:18} {text(wall[way])} ms; processor {text(processor[way])} ms")
    for way, why in result["failures"].items():
        print(f"  {way:18} failed: {why}")
    for ratio, of in (("best_to_ours", result["best"]), ("seed_to_ours", "full")):
        print(f"  time of {of} / ours: {text(result[ratio]['wall'])}; processor "
              f"{text(result[ratio]['processor'])}", flush=True)


def main():
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.set_default_device(arguments.device)
    global HALF
    HALF = arguments.half
    if HALF and arguments.device == "cpu":
        sys.exit("torch_bench.py: --half needs --device cuda")
    if arguments.memory_of:
        return memory_of(arguments.memory_of)
    results = {"torch": torch.__version__, "threads": arguments.threads, "shapes": {}}
    for name in arguments.shapes.replace("inference", "latency,throughput").split(","):
        results["shapes"][name] = compare(arguments, name)
        if not arguments.json:
            print_shape(name, results["shapes"][name])
    if arguments.memory:
        results["peak_memory_mib"] = compare_memory(arguments)
        if not arguments.json:
            print("peak memory of the shape seed, MiB:", results["peak_memory_mib"])
    if arguments.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
