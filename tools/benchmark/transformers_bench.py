"""The shape `text` of tools/benchmark in Transformers, measured in turns with it.

    python transformers_bench.py --benchmark ../../build/benchmark --rounds 3 --threads 1

Sizes and lengths of texts are read from `benchmark --shape text --json`. Texts of one batch are
padded to the longest of them, as DataCollatorWithPadding does; with --sorted, those of prediction
come 64 at a time in the order of their lengths, which is the best that padding can do. A training
step is forward, loss, backward, clipping and fused AdamW. In each round ours is measured and then
theirs, and ratios are taken inside a round. See torch_bench.py for what a busy machine does.
"""

import argparse
import json
import statistics
import subprocess
import time

import torch
from transformers import BertConfig, BertForSequenceClassification


def model_of(sizes):
    config = BertConfig(
        vocab_size=sizes["num_items"], hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["num_layers"], num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["inner_size"] or 4 * sizes["hidden_size"],
        max_position_embeddings=sizes["max_length"], num_labels=sizes["classes"])
    return BertForSequenceClassification(config)


def batches_of(lengths, vocabulary, size):
    """Padded batches of `size` rows of random tokens."""
    for begin in range(0, len(lengths), size):
        some = torch.tensor(lengths[begin:begin + size])
        mask = torch.arange(int(some.max()))[None, :] < some[:, None]
        tokens = torch.randint(1, vocabulary, mask.shape) * mask
        yield {"input_ids": tokens, "attention_mask": mask.long(), "labels": some % 10}


def milliseconds(run, seconds):
    run()
    times, begin = [], time.perf_counter()
    while not times or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def theirs(part, name, seconds, in_order):
    torch.manual_seed(1)
    model, lengths = model_of(part["model"]), part["lengths"]
    vocabulary = part["model"]["num_items"]
    if name.startswith("train"):
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        batch = next(batches_of(lengths, vocabulary, len(lengths)))

        def step():
            optimizer.zero_grad()
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return milliseconds(step, seconds)
    model.eval()
    batches = list(batches_of(sorted(lengths) if in_order else lengths, vocabulary, 64))

    def predict():
        with torch.inference_mode():
            for batch in batches:
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    return milliseconds(predict, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", required=True, help="the program of tools/benchmark")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="for each measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sorted", action="store_true", help="predict in the order of lengths")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    times = {}
    for _ in range(options.rounds):
        command = [options.benchmark, "--shape", "text", "--json", "--seconds",
                   str(options.seconds), "--threads", str(options.threads)]
        ours = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        for name, part in ours["shapes"]["text"].items():
            pair = (part["milliseconds"]["median"],
                    theirs(part, name, options.seconds, options.sorted))
            times.setdefault(name, []).append(pair)
            print(f"{name}: here {pair[0]:.1f} ms ({part['tokens_per_second']:.0f} tokens/s, "
                  f"{100 * part['fraction_of_peak']:.0f} % of the peak), Transformers "
                  f"{pair[1]:.1f} ms, {pair[1] / pair[0]:.2f} times", flush=True)
    for name, pairs in times.items():
        print(f"{name}: median ratio {statistics.median(b / a for a, b in pairs):.2f}")


if __name__ == "__main__":
    main()
