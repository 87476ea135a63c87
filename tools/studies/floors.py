#!/usr/bin/env python3
"""What a classifier of texts must beat: naive Bayes and a linear softmax on characters and pairs of
neighbouring characters. Standard library alone; two minutes for 65,000 titles.

    tools/studies/floors.py TRAIN TEST     label and text (or text and label), with a tab between

Prints the accuracy on the texts of TEST that do not stand in TRAIN.
"""
import math
import random
import sys


def read(path):
    """[(text, label)] of a file with a label and a text in each line, and perhaps a header."""
    lines = open(path, encoding="utf-8", newline="\n").read().split("\n")
    rows = [line.rstrip("\r").split("\t") for line in lines if line.count("\t") == 1]
    label = min((0, 1), key=lambda column: len({row[column] for row in rows}))
    if sum(row[label] == rows[0][label] for row in rows) == 1:
        del rows[0]  # the header
    return [(row[1 - label], row[label]) for row in rows]


def features(text):
    text = text.lower()
    return sorted(set(text) | {text[i : i + 2] for i in range(len(text) - 1)})


def naive_bayes(train, labels):
    """Multinomial, on the presence of features, with one added to each count."""
    counts, totals, vocabulary = [{} for _ in labels], [0] * len(labels), set()
    for found, label in train:
        for f in found:
            counts[label][f] = counts[label].get(f, 0) + 1
            vocabulary.add(f)
        totals[label] += len(found)
    prior = [math.log(sum(label == c for _, label in train)) for c in range(len(labels))]

    def scores(found):
        return [
            prior[c]
            + sum(math.log((counts[c].get(f, 0) + 1) / (totals[c] + len(vocabulary))) for f in found if f in vocabulary)
            for c in range(len(labels))
        ]

    return scores


def linear(train, labels, epochs=5, rate=0.1):
    """Softmax regression by Adagrad, a text a step."""
    C, weights, squares = range(len(labels)), {}, {}

    def scores(found):
        sums = [0.0 for _ in C]
        for row in (weights[f] for f in found if f in weights):
            for c in C:
                sums[c] += row[c]
        return sums

    dice = random.Random(13)
    for _ in range(epochs):
        dice.shuffle(train)
        for found, label in train:
            s = scores(found)
            e = [math.exp(x - max(s)) for x in s]
            gradient = [e[c] / sum(e) - (c == label) for c in C]
            for f in found:
                row = weights.setdefault(f, [0.0 for _ in C])
                sums = squares.setdefault(f, [1e-8 for _ in C])
                for c in C:
                    sums[c] += gradient[c] ** 2
                    row[c] -= rate * gradient[c] / math.sqrt(sums[c])
    return scores


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    texts = read(sys.argv[1])
    labels = sorted({label for _, label in texts})
    known = {text for text, _ in texts}
    train = [(features(text), labels.index(label)) for text, label in texts]
    test = [(features(text), labels.index(label)) for text, label in read(sys.argv[2]) if text not in known]
    for name, fit in (("naive Bayes", naive_bayes), ("linear softmax", linear)):
        scores = fit(train, labels)
        right = 0
        for found, label in test:
            s = scores(found)
            right += s.index(max(s)) == label
        print(f"{name}: {right / len(test):.2%} of {len(test):,} texts")


main()
