"""Writes a small data set of clinical phrases and ICD-10-CM codes: infections, tumours, blood, metabolism.

python codes.py makes codes/ with train.csv, test.csv and labels.csv, of the package simple-icd-10-cm.
"""

import csv
from pathlib import Path

from labelspace.data.quickstart import icd10cm

data = icd10cm()
kept = [row for row, name in enumerate(data.labels.ids) if name[0] in "ABCDE"]
folder = Path("codes")
folder.mkdir(exist_ok=True)
with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
    rows = csv.writer(file)
    rows.writerow(["id", "text"])
    rows.writerows((data.labels.ids[row], data.labels.texts[row]) for row in kept)
for name, corpus in (("train", data.train), ("test", data.test)):
    assert corpus is not None
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "labels"])
        for text, true in zip(corpus.texts, corpus.targets[:, kept], strict=True):
            if true.nnz:
                rows.writerow([text, ";".join(data.labels.ids[kept[place]] for place in true.indices)])
