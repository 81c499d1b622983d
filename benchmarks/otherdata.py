"""Two more data sets, made as LF files from what Debian offers to everyone, to look at defaults where none was chosen.

    python benchmarks/otherdata.py packages PACKAGES TRANSLATION OUT
    python benchmarks/otherdata.py wordnet DATA.NOUN OUT

``packages`` takes a ``Packages`` file of a Debian archive and its ``Translation-en``, unpacked (on a Debian machine:
``/usr/lib/apt/apt-helper cat-file`` of what lies in ``/var/lib/apt/lists``). A document is a package, with its name and
description; its labels are the packages that it depends on, recommends or suggests, by name and the first words of
their descriptions. Few labels are very frequent (the C library), and texts are long.

``wordnet`` takes ``data.noun`` of WordNet 3.0 (Debian's ``wordnet-base``). A document is a set of synonyms with its
gloss, and its labels are its hypernyms, theirs, and its topics, by their words. Texts are short, and labels are nested.

A fifth of the documents, drawn with a seed, is the test part.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

LABEL_CHARACTERS = 120


def stanzas(path: Path) -> Iterator[dict[str, str]]:
    """Fields of each paragraph of a Debian control file.

    Args:
        path: the file.
    """
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] += " " + line[1:]  # lines that are to stay as they are begin with two blanks
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def packages(index: Path, translation: Path) -> tuple[dict[str, tuple[str, str]], dict[str, set[str]], dict[str, str]]:
    """Documents as title and content, their labels, and the label texts, by package name.

    Args:
        index: ``Packages``.
        translation: ``Translation-en``.
    """
    described = {p["Package"]: p.get("Description-en", "").replace(" . ", " ") for p in stanzas(translation)}
    needed: dict[str, set[str]] = {}
    for package in stanzas(index):
        name, found = package["Package"], set()
        for field in ("Depends", "Recommends", "Suggests"):
            for part in package.get(field, "").split(","):
                other = re.match(r"\s*([a-z0-9][a-z0-9+.-]+)", part)
                if other and other[1] in described and other[1] != name:
                    found.add(other[1])
        if name in described and found:
            needed[name] = found
    texts = {
        name: f"{name}: {described[name].split('  ')[0][:LABEL_CHARACTERS]}" for name in set().union(*needed.values())
    }
    return {name: (name, described[name]) for name in needed}, needed, texts


def wordnet(nouns: Path) -> tuple[dict[str, tuple[str, str]], dict[str, set[str]], dict[str, str]]:
    """Documents as title and content, their labels, and the label texts, by synset number.

    Args:
        nouns: ``data.noun``.
    """
    words, glosses, above, topics = {}, {}, {}, {}
    for line in nouns.read_text(encoding="ascii").splitlines():
        if line.startswith("  "):  # the licence
            continue
        entry, gloss = line.split("|", 1)
        parts = entry.split()
        number, count = parts[0], int(parts[3], 16)
        words[number] = ", ".join(word.replace("_", " ") for word in parts[4 : 4 + 2 * count : 2])
        glosses[number] = gloss.strip()
        pointers = parts[5 + 2 * count :]
        pairs = [
            (pointers[i], pointers[i + 1]) for i in range(0, 4 * int(parts[4 + 2 * count]), 4) if pointers[i + 2] == "n"
        ]
        above[number] = {other for kind, other in pairs if kind in ("@", "@i")}
        topics[number] = {other for kind, other in pairs if kind.startswith(";")}
    labels = {n: above[n] | topics[n] | set().union(*(above[h] for h in above[n])) for n in words}
    labels = {number: found for number, found in labels.items() if found}
    texts = {number: words[number] for number in set().union(*labels.values())}
    return {number: (f"{words[number]}: {glosses[number]}", "") for number in labels}, labels, texts


def write(documents: dict[str, tuple[str, str]], labels: dict[str, set[str]], texts: dict[str, str], out: Path) -> None:
    """Write LF files.

    Args:
        documents: title and content by name.
        labels: label names by name of the document.
        texts: by label name.
        out: folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    numbers = {name: number for number, name in enumerate(sorted(texts))}
    with gzip.open(out / "lbl.json.gz", "wt", encoding="utf-8") as file:
        for name in numbers:
            file.write(json.dumps({"uid": name, "title": texts[name]}) + "\n")
    names = sorted(documents)
    random.Random(0).shuffle(names)
    for split, rows in (("tst", names[::5]), ("trn", [name for i, name in enumerate(names) if i % 5])):
        with gzip.open(out / f"{split}.json.gz", "wt", encoding="utf-8") as file:
            for name in rows:
                title, content = documents[name]
                own = sorted(numbers[label] for label in labels[name])
                row = {"uid": name, "title": title, "content": content, "target_ind": own}
                row["target_rel"] = [1.0] * len(own)
                file.write(json.dumps(row) + "\n")
    pairs = sum(map(len, labels.values()))
    print(f"{out}: {len(names)} documents, {len(numbers)} labels, {pairs / len(names):.2f} each")


def main() -> None:
    """Make the data set that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, sources in (("packages", ("packages", "translation")), ("wordnet", ("nouns",))):
        own = kinds.add_parser(kind)
        for name in (*sources, "out"):
            own.add_argument(name, type=Path)
    given = parser.parse_args()
    made = packages(given.packages, given.translation) if given.kind == "packages" else wordnet(given.nouns)
    write(*made, given.out)


if __name__ == "__main__":
    main()
