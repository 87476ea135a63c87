"""Makes the Unicode tables of appendix C of bert4rec.hpp from Python's unicodedata, and puts them
into the header:  python3.13 make_unicode.py ../../bert4rec.hpp
Python 3.13 has Unicode 15.1.0; another version writes what differs, and its number with it."""

import re
import sys
import unicodedata

ALL = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]  # no surrogates
CATEGORY = {c: unicodedata.category(c) for c in ALL}


def category(*names):
    return [c for c in ALL if CATEGORY[c].startswith(names)]


# ---- Sets: ranges FIRST or FIRST+MORE ------------------------------------------------------------


def ranges(characters):
    out = []
    for code in sorted(map(ord, characters)):
        if out and out[-1][1] == code - 1:
            out[-1][1] = code
        else:
            out.append([code, code])
    return [f"{a:X}" if a == b else f"{a:X}+{b - a:X}" for a, b in out]


# Two properties that unicodedata does not offer, but Python's lower() obeys: after a cased letter
# and then any number of ignorable characters, a capital sigma at the end becomes a final one.
def is_cased(c):
    return (c + "Σ").lower().endswith("ς")


def is_ignorable(c):
    return not is_cased(c) and ("A" + c + "Σ").lower().endswith("ς")


# ---- What a character becomes: lower case, NFD, without category Mn ------------------------------


def folded(text):
    decomposed = unicodedata.normalize("NFD", text.lower())
    return "".join(c for c in decomposed if CATEGORY[c] != "Mn")


def is_syllable(c):  # of Hangul, which is decomposed by arithmetic
    return 0xAC00 <= ord(c) < 0xAC00 + 11172


def show(text):
    return ".".join(f"{ord(c):X}" for c in text)


# The shortest step from a place at which something changes: its word, and how many characters it
# covers. To try: TARGET*COUNT all to one, TARGET+COUNT to successive ones, TARGET/COUNT the first
# of each of so many pairs to successive pairs, TARGET alone.
def step(fold, code):
    target = fold[code]
    if len(target) > 1:
        return show(target), 1
    first = ord(target)

    def count(stride, rise):
        n = 0
        while fold.get(code + n * stride) == chr(first + n * rise) and (
                stride == 1 or code + n * stride + 1 not in fold):
            n += 1
        return n

    same, successive, pairs = count(1, 0), count(1, 1), count(2, 2)
    best = max(same, successive, 2 * pairs if pairs > 1 else 0)
    if best == 1:
        return show(target), 1
    if best == same:
        return f"{show(target)}*{same:X}", same
    if best == successive:
        return f"{show(target)}+{successive:X}", successive
    return f"{show(target)}/{pairs:X}", 2 * pairs


def fold_words():
    fold = {ord(c): folded(c) for c in ALL
            if folded(c) != c and CATEGORY[c] != "Mn" and not is_syllable(c)}
    words, place = [], None
    for code in sorted(fold):
        if place is not None and code < place:
            continue
        if place != code:
            gap = None if place is None else code - place
            words.append(f"{code:X}:" if gap is None or gap > 0xFF else f"~{gap:X}")
        word, covered = step(fold, code)
        words.append(word)
        place = code + covered
    return words


# ---- The checks on which the C++ relies ----------------------------------------------------------


def check():
    for c in ALL:
        fold = folded(c)
        assert fold or CATEGORY[c] == "Mn", "nothing else vanishes"
        assert CATEGORY[c] != "Mn" or fold == "", "a mark does not change"
        assert len(fold) < 4, "a character becomes at most three"
        per_character = "".join(
            d.lower() for d in unicodedata.normalize("NFD", c) if CATEGORY[d] != "Mn")
        assert fold == per_character, "lower case and decomposition may change places"
        if CATEGORY[c] not in ("Zs", "Zl", "Zp"):
            assert not any(d.isspace() and CATEGORY[d] != "Cc" for d in fold), "no space arises"
        assert CATEGORY[c] != "Mn" or is_ignorable(c), "a mark does not matter for a sigma"
        assert len(fold) != 1 or c == fold or not unicodedata.combining(fold)
    for c in category("P"):
        assert unicodedata.combining(c) == 0, "punctuation keeps its place"


def tables():
    marks = category("Mn")
    spacing = sorted((c for c in ALL if CATEGORY[c] != "Mn" and unicodedata.combining(c)), key=ord)
    vanish = set(marks) | set(category("Cc", "Cf"))
    return {
        "version": [unicodedata.unidata_version],
        "control": ranges(category("Cc", "Cf")),
        "private_use": ranges(category("Co")),
        "space": ranges(category("Z")),
        "punctuation": ranges(category("P")),
        "mark": ranges(c for c in marks if unicodedata.combining(c)),
        "mark_of_class_0": ranges(c for c in marks if not unicodedata.combining(c)),
        "combining": [f"{ord(c):X}:{unicodedata.combining(c):X}" for c in spacing],
        "cased": ranges(c for c in ALL if is_cased(c)),
        "ignorable": ranges(c for c in ALL if is_ignorable(c) and c not in vanish),
        "fold": fold_words(),
    }


def definition(name, words):
    begin = f"inline constexpr std::string_view {name} ="
    short = f'{begin} "{" ".join(words)}";\n'
    return short if len(short) <= 101 else f"{begin}\n{literal(words)};\n"


def literal(words):
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) + 1 > 100 - len('    "";'):
            lines.append(line)
            line = ""
        line += word + " "
    return "\n".join(f'    "{text}"' for text in lines + [line.rstrip()])


def main():
    check()
    with open(sys.argv[1], encoding="utf-8", newline="") as file:
        header = file.read()
    for name, words in tables().items():
        pattern = re.compile(rf'inline constexpr std::string_view {name} =(\s+"[^"\n]*")*;\n')
        text = definition(name, words)
        header, found = pattern.subn(lambda _: text, header)
        assert found == 1, name
        print(f"{name}: {len(words)} words, {len(text.splitlines())} lines")
    with open(sys.argv[1], "w", encoding="utf-8", newline="") as file:
        file.write(header)


if __name__ == "__main__":
    main()
