"""A model that is changed after training: equal to one built afresh, whole on disk at any moment."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import TINY, VOTES, rounding
from snippets import Runner

import labelspace as ls
from labelspace.cli.app import main
from labelspace.memory import storage
from labelspace.memory.keys import Keys
from labelspace.memory.memory import Memory
from labelspace.memory.voting import Query, Voting

NAMES = ["red oak", "tall fern", "wild rose", "dry moss"]
IDS = ["L0", "L1", "L2", "L3"]
TEXTS = ["a red oak", "history of the wild rose", "moss", "old vine of the red moss", "tall wheat"]


@pytest.fixture
def model(tiny_transformer: Path) -> ls.Model:
    made = ls.Model.from_encoder(str(tiny_transformer), ls.Labels(IDS, NAMES), device="cpu")
    made.add_documents(["an old red oak", "ferns, tall", "roses of the wild"], [["L0"], ["L1", "L3"], ["wild rose"]])
    return made


def afresh(model: ls.Model, labels: dict[str, str], documents: dict[str, tuple[str, list[str]]]) -> ls.Model:
    """A model of these labels and documents, made in one go."""
    made = ls.Model.from_encoder(model.encoder, ls.Labels(list(labels), list(labels.values())), device="cpu")
    rows = {name: (text, own) for name, (text, own) in documents.items() if own}
    if rows:
        made.add_documents([text for text, _ in rows.values()], [own for _, own in rows.values()], list(rows))
    made.memory.voting = model.memory.voting
    return made


def same(a: ls.Model, b: ls.Model, k: int = 6) -> None:
    one, two = a.predict(TEXTS, k), b.predict(TEXTS, k)
    np.testing.assert_allclose(one.scores, two.scores, atol=VOTES)
    for row in range(len(TEXTS)):
        mine, theirs = ({name: s for name, _, s in p.named(row)} for p in (one, two))
        for name in set(mine) ^ set(theirs):  # equal scores may fall off differently at the cut
            assert (mine | theirs)[name] == pytest.approx(min((mine | theirs).values()), abs=VOTES)


def test_added_documents_and_labels_count_at_once(model: ls.Model) -> None:
    assert model.memory.voting == Voting()
    model.add_labels(["blue stone", "vine"], ["L4", "L5"])
    assert list(model.labels.ids) == [*IDS, "L4", "L5"]
    assert model.predict(["blue stone"], 1).named(0)[0][:2] == ("L4", "blue stone")
    ids = model.add_documents(["tall wheat"], [["vine"]])
    assert ids == ["added-4"]
    best = model.predict(["tall wheat"], 1, why=True)
    model.memory.voting = Voting(weight=1.0)
    assert model.predict(["tall wheat"], 1).named(0)[0][0] == "L5"
    assert best.reasons is not None
    keys = [(r.kind, r.id) for label in model.predict(["tall wheat"], 6, why=True).reasons[0] for r in label]  # type: ignore[index]
    assert ("document", "added-4") in keys
    model.rename_labels({"L5": "old vine"})
    assert model.predict(["old vine"], 6, labels=["old vine"]).named(0)[0][:2] == ("L5", "old vine")
    model.remove_labels(["L5"])
    assert "L5" not in list(model.labels.ids) and len(model.labels) == 5
    assert model.predict(["tall wheat"], 6).indices.max() < 5
    model.remove_documents(["added-1", "added-2", "added-3", "added-4"])
    assert model.memory.voting.scoring == "similarity" and model.memory.n_documents == 0
    assert [entry["change"] for entry in model.history] == [
        "add documents", "add labels", "add documents", "rename labels", "remove labels", "remove documents"
    ]  # fmt: skip


def test_ids_stay_and_never_come_back_as_others(model: ls.Model, tmp_path: Path) -> None:
    model.remove_documents(["added-2"])
    model.remove_labels(["L1"])
    model.save(tmp_path / "m")
    for again in (model, ls.Model.load(tmp_path / "m")):
        assert again.add_documents(["something new"], [["L0"]]) != ["added-2"]
        with pytest.raises(ls.DataError, match="'added-2' was the id of a document with another text"):
            again.add_documents(["something new"], [["L0"]], ["added-2"])
        with pytest.raises(ls.DataError, match="'L1' was the id of a label with another text"):
            again.add_labels(["something"], ["L1"])
        with pytest.raises(ls.DataError, match="'L1' is not in the model$"):
            again.remove_labels(["L1"])
        again.add_documents(["ferns, tall"], [["L0"]], ["added-2"])
        again.add_labels(["tall fern"], ["L1"])
        assert list(again.labels.ids) == ["L0", "L2", "L3", "L1"]
    again.compact()
    again.remove_labels(["L1"])
    again.compact()
    with pytest.raises(ls.DataError, match="was the id of a label"):
        again.add_labels(["something"], ["L1"])


def test_bad_changes_are_refused_and_change_nothing(model: ls.Model) -> None:
    before = model.predict(TEXTS, 4)
    for change, message in (
        (lambda: model.add_documents(["x"], [["L9"]]), "no label 'L9'"),
        (lambda: model.add_documents(["x"], [[]]), "has no label"),
        (lambda: model.add_documents(["x", "y"], [["L0"]]), "2 documents, but labels of 1"),
        (lambda: model.add_documents(["x", "y"], [["L0"], ["L0"]], ["a", "a"]), "'a' is given twice"),
        (lambda: model.add_documents(["x"], [["L0"]], ["added-1"]), "has a document 'added-1' already"),
        (lambda: model.add_documents(["x"], [["L0"]], ["a", "b"]), "2 ids for 1"),
        (lambda: model.remove_documents(["added-1", "added-9"]), "'added-9' is not in the model; the nearest"),
        (lambda: model.remove_documents(["added-1", "added-1"]), "given twice"),
        (lambda: model.add_labels(["x"], ["L0"]), "has a label 'L0' already; rename it"),
        (lambda: model.rename_labels({"L0": "x", "L7": "y"}), "'L7' is not in the model"),
        (lambda: model.remove_labels(IDS), "at least one label"),
        (lambda: model.add_labels(["x"], [""]), "label id '' is empty"),
        (lambda: model.add_labels(["x"], [" a"]), "label id ' a' has blanks around it"),
        (lambda: model.add_labels(["x"], ["a\tb"]), "holds a line end, a tab"),
        (lambda: model.add_labels(["fine", "two\nlines"]), "holds a line end, a tab"),
        (lambda: model.add_labels(["fine", ""]), r"label number 1 \(from 0\) has an empty text"),
        (lambda: model.add_labels(["fine", " "], ["a", "b"]), "label 'b' has an empty text"),
        (lambda: model.rename_labels({"L0": "\n"}), "label 'L0' has an empty text"),
        (lambda: model.add_documents([""], [["L0"]]), r"document number 0 \(from 0\) has an empty text"),
        (lambda: model.add_documents(["x"], [["L0"]], ["a\u2028b"]), "holds a line end, a tab"),
        (lambda: model.add_documents(["x"], [["L0"]], ["a\ud800"]), "another control character"),
        (lambda: model.add_documents(["x"], [None]), "a list of labels was expected"),
        (lambda: model.add_documents(["x"], [["L0"]], relevances=[[0.5, 1]]), "1 labels, but relevances of 2"),
        (lambda: model.add_documents(["x"], [["L0"]], relevances=[[1.5]]), "relevance 1.5 of the document 'added-4'"),
        (lambda: model.add_documents(["x"], [["L0"]], relevances=[]), "1 documents, but relevances of 0"),
    ):
        with pytest.raises(ls.DataError, match=message):
            change()
    after = model.predict(TEXTS, 4)
    assert np.array_equal(before.scores, after.scores) and len(model.history) == 1


def test_a_document_can_be_replaced(model: ls.Model) -> None:
    model.add_documents(["a dry moss"], [["L3"]], ["added-1"], replace=True)
    assert model.memory.n_documents == 3
    documents = {"added-2": ("ferns, tall", ["L1", "L3"]), "added-3": ("roses of the wild", ["L2"])}
    same(model, afresh(model, dict(zip(IDS, NAMES, strict=True)), {**documents, "added-1": ("a dry moss", ["L3"])}))


@pytest.mark.parametrize("votes", ["raw", "normalized"])
def test_a_thousand_changes_equal_building_the_final_state(
    model: ls.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, votes: Any
) -> None:
    monkeypatch.setattr("labelspace.memory.keys.SMALL_SEGMENT_KEYS", 5)
    rng = np.random.default_rng(0)
    words = ["red", "tall", "wild", "dry", "oak", "rose", "fern", "moss", "vine", "wheat", "old", "short"]

    def text() -> str:
        return " ".join(rng.choice(words, 4))

    model.memory.voting = Voting(label_depth=7, document_depth=9, weight=0.4, votes=votes)
    labels = dict(zip(IDS, NAMES, strict=True))
    documents = {f"added-{i + 1}": (model.memory.document_keys.texts(np.array([i]))[0], own)
                 for i, own in enumerate([["L0"], ["L1", "L3"], ["L2"]])}  # fmt: skip
    model.save(tmp_path / "m")
    count = 0
    for number in range(1000):
        kind = rng.choice(["add document", "remove document", "add label", "rename", "remove label", "replace"])
        if kind == "add document":
            own = rng.choice(list(labels), min(len(labels), int(rng.integers(1, 4))), replace=False).tolist()
            added = text()
            (name,) = model.add_documents([added], [own])
            assert name not in documents
            documents[name] = (added, own)
        elif kind == "remove document" and len(documents) > 1:
            name = str(rng.choice(list(documents)))
            model.remove_documents([name])
            del documents[name]
        elif kind == "replace" and documents:
            name, own = str(rng.choice(list(documents))), [str(rng.choice(list(labels)))]
            documents[name] = (text(), own)
            model.add_documents([documents[name][0]], [own], [name], replace=True)
        elif kind == "add label":
            count += 1
            labels[f"N{count}"] = text()
            model.add_labels([labels[f"N{count}"]], [f"N{count}"])
        elif kind == "rename":
            name = str(rng.choice(list(labels)))
            labels[name] = text()
            model.rename_labels({name: labels[name]})
        elif kind == "remove label" and len(labels) > 2:
            name = str(rng.choice(list(labels)))
            model.remove_labels([name])
            del labels[name]
            documents = {d: (t, [x for x in own if x != name]) for d, (t, own) in documents.items()}
        if number % 199 == 0:
            before = model.predict(TEXTS, 6)
            model.save()
            np.testing.assert_allclose(model.predict(TEXTS, 6).scores, before.scores, atol=VOTES)
            model = ls.Model.load(tmp_path / "m")
        if number % 499 == 0:
            same(model, afresh(model, labels, documents))
    assert dict(zip(model.labels.ids, model.labels.texts, strict=True)) == labels
    expected = afresh(model, labels, documents)
    same(model, expected)
    model.save()
    same(ls.Model.load(tmp_path / "m"), expected)
    model.compact()
    same(model, expected)
    model.save()
    assert len(list((tmp_path / "m" / "memory").iterdir())) == 3
    same(ls.Model.load(tmp_path / "m"), expected)
    model.save(tmp_path / "other")
    same(ls.Model.load(tmp_path / "other"), expected)


def test_only_what_changed_is_written(model: ls.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelspace.memory.keys.SMALL_SEGMENT_KEYS", 1)
    monkeypatch.setattr("labelspace.memory.keys.REWRITE_SHARE", 0.5)
    folder = tmp_path / "m"
    model.save(folder)
    before = {p: p.stat().st_ino for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"}
    again = ls.Model.load(folder)
    again.add_documents(["dry"], [["L3"]])
    again.remove_documents(["added-1"])
    again.save()
    after = {p: p.stat().st_ino for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"}
    assert {p: i for p, i in after.items() if p in before} == before
    assert sorted(p.name for p in set(after) - set(before)) == ["changes-2.safetensors", "documents-2-1.safetensors"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["revision"] == 2 and manifest["documents"] == 3
    assert [entry["change"] for entry in manifest["history"]] == ["add documents", "add documents", "remove documents"]
    with pytest.raises(ls.ModelError, match="was changed by another since it was opened"):
        model.save()


KILLER = """
import json, os, shutil, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import labelspace as ls
from labelspace.memory.storage import open_memory

home, encoder, graphs = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "graphs"
labels = ls.Labels(["L0", "L1", "L2"], ["red oak", "tall fern", "wild rose"])
made = ls.Model.from_encoder(encoder, labels, device="cpu")
made.add_documents(["an old red oak", "ferns, tall"], [["L0"], ["L1"]])
if graphs:
    made.build_index(smallest=1)
made.save(home / "whole")

def change(model):
    model.add_documents(["roses of the wild"], [["L2"]], ["new"])
    model.remove_documents(["added-1"])
    model.add_labels(["dry moss"], ["L3"])
    model.rename_labels({"L0": "green oak"})
    if graphs:
        model.build_index(smallest=4)
    model.save()

def whole(memory, history):
    keys, labels = memory.document_keys, memory.labels
    how = [(part["keys"], part["count"], part["kind"]) for part in memory.indexes()]
    return sorted(keys.ids(keys.present())), sorted(zip(labels.ids, labels.texts)), len(history), how

def state(model):
    return whole(model.memory, model.history)

old = state(made)
entry = json.loads((home / "whole" / "manifest.json").read_text())["memory"]
shutil.copytree(home / "whole", home / "changed")
model = ls.Model.load(home / "changed")
change(model)
new = state(model)
assert state(ls.Model.load(home / "changed")) == new != old

def kill_at(point):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir", "os.truncate", "fsync"):
            seen += 1
            if seen == point:
                os.kill(os.getpid(), signal.SIGKILL)
    real = os.fsync
    def fsync(descriptor):
        sys.audit("fsync", descriptor)
        real(descriptor)
        sys.audit("fsync", descriptor)
    os.fsync = fsync
    sys.addaudithook(hook)

def on_disk(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    return whole(open_memory(folder / "memory", manifest["memory"]), manifest["history"])

found = []
for point in range(1, 200):
    folder = home / f"m{point}"
    shutil.copytree(home / "whole", folder)
    model.core.memory, model.core.labels = open_memory(folder / "memory", entry), made.labels
    model.core.history = json.loads((folder / "manifest.json").read_text())["history"]
    model.core.folder, model.core.revision, model.core._names = folder.resolve(), 1, None
    child = os.fork()
    if child == 0:
        kill_at(point)
        change(model)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found.append({str(old): "old", str(new): "new"}.get(str(on_disk(folder)), "third"))
    if point % 9 == 0:  # what the killed one left is no hindrance, and does not stay
        left = ls.Model.load(folder)
        if found[-1] == "old":
            change(left)
        else:
            left.remove_documents(["new"])
            left.save()
        listed = json.loads((folder / "manifest.json").read_text())["files"]
        there = {f"memory/{p.name}" for p in (folder / "memory").iterdir()}
        assert there == {name for name in listed if name.startswith("memory/")}
    shutil.rmtree(folder)
    if not os.WIFSIGNALED(status):
        break
print(" ".join(found))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", ["plain", "graphs"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_state(
    tiny_transformer: Path, forked: Runner, tmp_path: Path, kind: str
) -> None:
    done = subprocess.run(
        [forked.tool("python"), "-c", KILLER, str(tmp_path), str(tiny_transformer), kind],
        capture_output=True, text=True, env=forked.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    states = done.stdout.split()
    assert len(states) > 12 and set(states) == {"old", "new"}
    assert states == sorted(states, reverse=True) and states.count("new") > 2


def test_a_failed_change_leaves_the_old_state(model: ls.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"
    model.save(folder)
    expected = model.predict(TEXTS, 4)
    model.add_documents(["dry"], [["L3"]])

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr("labelspace.model.folder.sync", fail)
        model.save()
    assert np.array_equal(ls.Model.load(folder).predict(TEXTS, 4).scores, expected.scores)
    model.save()
    assert ls.Model.load(folder).memory.n_documents == 4


def test_a_failed_copy_leaves_a_model_that_can_be_saved(
    model: ls.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save(tmp_path / "m")
    for texts in ({"L3": "x"}, {"L3": "y"}):  # its own files are of a later revision than those of a copy
        model.rename_labels(texts)
        model.save()
    model = ls.Model.load(tmp_path / "m")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr("labelspace.model.folder.save_manifest", fail)
        model.save(tmp_path / "copy")
    model.save()
    again = ls.Model.load(tmp_path / "m")
    assert np.array_equal(again.predict(TEXTS, 4).scores, model.predict(TEXTS, 4).scores)


def test_what_cannot_be_written_is_named_and_nothing_is_left(
    model: ls.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    folder, file = tmp_path / "m", tmp_path / "more.csv"
    model.save(folder)
    file.write_text("text,labels\n" + "".join(f"an old red oak {i},L0\n" for i in range(60)))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    tokens = (
        ["documents", "add", folder, file],
        ["compact", folder],
        ["predict", folder, file, "--out", f"{folder}.jsonl"],
        ["tune", folder, file, "--out", f"{folder}2"],
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # no file may be longer
    try:
        codes = [main([*map(str, command), "--quiet"]) for command in tokens]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("labelspace: ")]
    assert codes == [1] * 4 and said == [
        f"labelspace: cannot write {place}: File too large; free some space, or choose another place"
        for place in (folder, folder / "manifest.json", f"{folder}.jsonl", f"{folder}2")
    ]
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert ls.Model.load(folder).memory.n_documents == 3


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_computed(
    model: ls.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "m")
    model.save(folder)
    (tmp_path / "f.csv").write_text("id,text,labels\nL0,new oak,L1\n")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != folder)  # root may write anywhere
    monkeypatch.setattr(ls.Model, "load", None)
    for tokens in (["tune"], ["documents", "add"], ["documents", "remove"], ["labels", "add"], ["labels", "rename"],
                   ["labels", "remove"], ["compact"], ["index", "--kind", "hnsw"], ["calibrate"]):  # fmt: skip
        file = [str(tmp_path / "f.csv")] if tokens[0] not in ("compact", "index") else []
        assert main([*tokens, folder, *file]) == 1
        assert f"{folder} cannot be changed: {folder} cannot be written to; make it writable" in capsys.readouterr().err


def test_a_folder_that_changes_while_it_is_opened_is_opened_again(
    model: ls.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "m"
    model.save(folder)
    other, real, tries = ls.Model.load(folder), storage.open_memory, 0

    def opened(*arguments: Any) -> Memory:
        nonlocal tries
        tries += 1
        if tries <= most:  # another process is faster
            other.add_documents([f"old oak {tries}"], [["L0"]])
            other.save()
        return real(*arguments)

    monkeypatch.setattr(storage, "open_memory", opened)
    most = 8
    assert ls.Model.load(folder).memory.n_documents == 3 + 8 and tries == 9
    most = 10**6
    monkeypatch.setattr("labelspace.model.folder.PATIENCE", 0.2)
    with pytest.raises(ls.ModelError, match="another process changes it all the time; try again when that is done"):
        ls.Model.load(folder)
    most = 0
    next((folder / "memory").glob("documents-*")).unlink()
    with pytest.raises(ls.ModelError, match="copy or train it again"):
        ls.Model.load(folder)


def test_two_do_not_change_one_folder_at_a_time(model: ls.Model, tmp_path: Path) -> None:
    from labelspace.base.files import folder_lock

    model.save(tmp_path / "m")
    model.add_labels(["vine"])
    with folder_lock(tmp_path / "m"), pytest.raises(ls.LabelspaceError, match="another process is changing"):
        model.save()
    model.save()


def test_a_large_memory_opens_without_being_read(tmp_path: Path, tiny_transformer: Path) -> None:
    """Its keys and texts are mapped: nothing of them is in this process before it is asked for."""
    import torch

    from labelspace.base.strings import Strings
    from labelspace.memory.keys import Segment

    n = 300_000
    offsets = np.arange(n + 1) * 8
    strings = Strings(np.frombuffer("".join(f"{i:08d}" for i in range(n)).encode(), dtype=np.uint8), offsets)
    keys = torch.zeros(n, 128, dtype=torch.bfloat16)
    documents = Segment(keys, np.arange(n + 1), np.arange(n, dtype=np.int32) % 4, None, strings, strings)
    labels = Memory.of_labels(torch.eye(4, 128), ls.Labels(IDS, NAMES)).label_keys
    entry = storage.write(Memory(labels, Keys([documents], 128), Voting()), tmp_path, 1)
    script = (
        "import sys, json, pathlib; from labelspace.memory.storage import open_memory;"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096;"
        "before = resident(); m = open_memory(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]));"
        "print(resident() - before, m.n_documents, m.document_keys.texts.__name__)"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), json.dumps(entry)], capture_output=True, text=True, check=True
    )
    grown, found, _ = done.stdout.split()
    assert int(found) == n and int(grown) < 20e6 < (tmp_path / entry["segments"]["documents"][0]).stat().st_size


def test_from_the_command_line(model: ls.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "m")
    model.save(folder)
    (tmp_path / "new.csv").write_text("id,text,labels\nd1,dry moss of old,dry moss;L0\nd2,short vine,L2\n")
    (tmp_path / "plain.csv").write_text("text,labels\nwild wheat,L1\n")
    (tmp_path / "labels.csv").write_text("id,text\nL9,blue stone\n")
    (tmp_path / "names.txt").write_text("green stone\n")
    (tmp_path / "renamed.csv").write_text("id,text\nL9,dark blue stone\n")
    (tmp_path / "gone.txt").write_text("d2\n")
    (tmp_path / "labels.txt").write_text("L1\n")

    def run(*tokens: str) -> str:
        assert main([*tokens, "--quiet"]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "added 2 documents" in run("documents", "add", folder, str(tmp_path / "new.csv"))
    assert json.loads(run("documents", "add", folder, str(tmp_path / "plain.csv"), "--json"))["added"] == ["added-6"]
    run("labels", "add", folder, str(tmp_path / "labels.csv"))
    run("labels", "add", folder, str(tmp_path / "names.txt"))
    run("labels", "rename", folder, str(tmp_path / "renamed.csv"))
    run("documents", "remove", folder, str(tmp_path / "gone.txt"))
    run("labels", "remove", folder, str(tmp_path / "labels.txt"))
    assert "L9\tdark blue stone" in run("labels", "list", folder)
    listed = run("documents", "list", folder)
    assert "d1\tL0;L3\tdry moss of old" in listed and "d2" not in listed
    run("compact", folder)
    assert run("documents", "list", folder) == listed
    assert main(["documents", "remove", folder, str(tmp_path / "gone.txt")]) == 1
    assert "'d2' is not in the model" in capsys.readouterr().err
    (tmp_path / "query.txt").write_text("old dry moss\n")
    shown = run("predict", folder, str(tmp_path / "query.txt"), "--why", "--k", "2")
    assert "(document d1, similarity" in shown
    record = json.loads(run("predict", folder, str(tmp_path / "query.txt"), "--why", "--format", "jsonl", "--k", "2"))
    for label in record["labels"]:
        assert sum(key["share"] for key in label["why"]) == pytest.approx(label["score"], abs=1e-5)
    assert main(["predict", folder, str(tmp_path / "query.txt"), "--why", "--format", "tsv"]) == 2
    assert "--why cannot be written as tsv" in capsys.readouterr().err


def test_ids_of_training_that_no_line_can_hold_can_be_listed_and_removed(
    model: ls.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["two\nlines", " blank ", "a\u2028b", "\ttab"]
    train = ls.Corpus(names, ["a", "b", "c", "d"], sp.csr_array(np.eye(4, dtype=np.float32)))
    nothing = ls.Corpus([], [], sp.csr_array((0, 4), dtype=np.float32))
    data = ls.Dataset("odd", model.labels, train, nothing, None, np.zeros(0, np.int64))
    model.tune(data)
    assert model.add_documents(["other"], [["L0"]], ["two\nlines"], replace=True) == ["two\nlines"]
    model.save(tmp_path / "m")
    folder = str(tmp_path / "m")
    assert main(["documents", "list", folder, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert [row["id"] for row in rows if not row["id"].startswith("added")] == [*names[1:], names[0]]
    odd = [json.dumps(row) for row in rows if not row["id"].startswith("added")]
    (tmp_path / "odd.jsonl").write_text("\n".join(odd))
    (tmp_path / "lines.txt").write_text(" blank \r\na\u2028b\n")
    assert main(["documents", "remove", folder, str(tmp_path / "lines.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [" blank ", "a\u2028b"]
    (tmp_path / "odd.jsonl").write_text("\n".join(line for line in odd if "lines" in line or "\\t" in line))
    assert main(["documents", "remove", folder, str(tmp_path / "odd.jsonl")]) == 0
    left = ls.Model.load(folder).memory
    assert not set(names) & set(left.document_keys.ids(left.document_keys.present()))
    (tmp_path / "no.jsonl").write_text('{"text": "x"}\n')
    for file, message in (("no.jsonl", "there is no id, only 'text'"), ("none.txt", "there is no such file")):
        assert main(["documents", "remove", folder, str(tmp_path / file)]) == 1
        assert message in capsys.readouterr().err


def test_files_of_changes_are_read_as_they_are_meant(
    model: ls.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save(tmp_path / "m")
    monkeypatch.chdir(tmp_path)

    def run(what: str, content: str, *flags: str, kind: str = "csv") -> tuple[int, str]:
        Path(f"f.{kind}").write_text(content)
        code = main([*what.split(), "m", f"f.{kind}", "--json", "--quiet", *flags])
        captured = capsys.readouterr()
        return code, captured.out if code == 0 else captured.err

    # ids that look like row numbers are ids all the same
    assert json.loads(run("labels add", "id,text\n0,blue stone\n1,grey stone\n")[1])["added"] == ["0", "1"]
    assert json.loads(run("documents add", "id,text,labels\n0,a blue stone,0\n1,stones,0;1\n")[1])["added"] == [
        "0",
        "1",
    ]
    assert run("labels rename", "green stone\n", kind="txt") == (
        1, "labelspace: f.txt: a new text needs the id of its label, and here are no ids; give a table with the "
        "columns id and text\n",
    )  # fmt: skip
    assert ls.Model.load("m").labels.texts[4] == "blue stone"
    assert json.loads(run("labels add", " white stone \nfern stone\n\n", kind="txt")[1])["added"] == [
        "white stone", "fern stone"
    ]  # fmt: skip
    assert json.loads(run("labels add", "uri,label\n http://a ,black stone\n")[1])["added"] == ["http://a"]
    for what, content, message in (
        ("labels add", "id,text\nq,one\n,two\n", "f.csv: 1 of 2 labels have no id; give an id to all"),
        ("documents add", "id,text,labels\nq,one,L0\n,two,L0\n", "f.csv: 1 of 2 documents have no id"),
        ("documents add", "id,text,labels\nq,one,\n", "f.csv: no document has a label, so none could vote"),
        ("documents add", "id,text,labels\nq,one,L0\nr,x,\n", "1 of 2 documents have no label and could vote for none"),
        ("documents add", "text,labels\none,L0\nx,\n", "the first is number 1 (from 0)"),
        ("documents add", 'id,text,labels\n"a\nb",one,L0\n', "holds a line end"),
        ("labels rename", "id,text\nL0,\n", "the label 'L0' has an empty text"),
        ("labels add", "\n\n", "there are no labels"),
    ):
        code, err = run(what, content)
        told = 2 if "documents have no id" in message else 1  # the line of the first stands in a warning before
        assert code == 1 and message in err and err.count("\n") == told, err
    row = {"id": "r", "text": "rosy", "labels": ["L0", "L2"], "relevances": [0.25, 1]}
    assert run("documents add", json.dumps(row), kind="jsonl")[0] == 0
    opened = ls.Model.load("m")
    segment, at = opened.memory.document_keys.find("r")  # type: ignore[misc]
    votes = slice(segment.indptr[at], segment.indptr[at + 1])
    assert segment.values is not None and segment.values[votes].tolist() == [0.25, 1]
    for flags in (
        ["predict", "m", "", "--k", "1"],
        ["predict", "m", "f.jsonl", "--labels", ""],
        ["labels", "add", "m", ""],
    ):
        assert main(flags) == 2 and "is empty; name a file or folder" in capsys.readouterr().err
    Path("none.txt").write_text("\n")
    assert main(["predict", "m", "f.jsonl", "--labels", "none.txt"]) == 1
    assert "none.txt: there are no labels to choose from" in capsys.readouterr().err


def test_documents_without_a_label_left_stay_and_vote_for_nothing(
    model: ls.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model.memory.voting = Voting(weight=1.0)
    model.remove_labels(["L2"])
    assert "1 documents have no label left and vote for nothing" in caplog.text
    assert model.memory.n_documents == 3 and model.memory.n_unlabelled == 1
    voters = {key.id for label in model.predict(["roses of the wild"], 3, why=True).reasons[0] for key in label}  # type: ignore[index]
    assert voters == {"added-1", "added-2"}
    model.save(tmp_path / "m")
    (tmp_path / "gone.txt").write_text("L3\n")
    assert main(["documents", "list", str(tmp_path / "m")]) == 0
    assert "added-3\t\troses of the wild" in capsys.readouterr().out
    assert main(["labels", "remove", str(tmp_path / "m"), str(tmp_path / "gone.txt")]) == 0
    assert "and 3 documents, 1 of them without a label" in capsys.readouterr().out
    again = ls.Model.load(tmp_path / "m")
    again.add_documents(["roses of the wild"], [["L0"]], ["added-3"], replace=True)
    assert again.memory.n_unlabelled == 0
    model.add_labels(["grey stone"])
    model.remove_labels(["L0", "L1", "L3"])  # now no document votes, and weight 1 would leave nothing to answer with
    assert model.memory.n_unlabelled == 3 and model.predict(["moss"], 1).named(0)[0][0] == "grey stone"


def test_a_dual_encoder_explains_itself(tiny_transformer: Path) -> None:
    plain = ls.Model.from_encoder(str(tiny_transformer), ls.Labels(IDS, NAMES), device="cpu")
    pred = plain.predict(TEXTS, 2, why=True)
    assert pred.reasons is not None
    for row, reasons in enumerate(pred.reasons):
        for rank, keys in enumerate(reasons):
            (key,) = keys
            assert (key.kind, key.text) == ("label", pred.named(row)[rank][1])
            assert key.share == key.similarity == pytest.approx(float(pred.scores[row, rank]), abs=TINY)


@pytest.mark.parametrize("recipe", ["dexml", "unidec"])
def test_models_of_every_recipe_take_a_memory_and_changes(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path, recipe: str
) -> None:
    data = ls.load(toy_folder)
    assert data.test is not None
    rates = {"lr": 0.03, "evaluations": 0} if recipe == "unidec" else {"lr": 0.03}  # the last weights, not the first
    model = ls.train(data, recipe=recipe, base=str(tiny_transformer), epochs=3, out=tmp_path / "m", **rates)
    plain = ls.evaluate(model.predict(data.test.texts), data.test.targets, ks=(1,))["P@1"]
    assert model.tune(data) is not None
    assert model.memory.n_documents == len(data.train)
    assert ls.evaluate(model.predict(data.test.texts), data.test.targets, ks=(1,))["P@1"] > plain - 5
    model.memory.voting = Voting()
    before = model.memory.keys.clone()
    model.add_labels(["purple wheat"], ["new"])
    model.add_documents(["purple wheat of old"], [["new"]], ["d"])
    model.rename_labels({"L0": "crimson oak"})
    model.save()
    again = ls.Model.load(tmp_path / "m")
    for pred in (
        model.predict(["purple wheat of old"], 3, why=True),
        again.predict(["purple wheat of old"], 3, why=True),
    ):
        assert pred.reasons is not None and pred.named(0)[0][0] == "new"
        assert {(r.kind, r.id) for r in pred.reasons[0][0]} >= {("document", "d"), ("label", "new")}
    learned = slice(before.shape[1], None) if model.heads is None else model.heads.columns("classifier")
    assert np.array_equal(again.memory.keys[0, learned].numpy(), before[0, learned].numpy())
    assert not np.array_equal(again.memory.keys[0].numpy(), before[0].numpy())
    if model.heads is not None:
        made = again.encode_labels(["purple wheat", "golden wheat"])
        np.testing.assert_allclose(again.memory.keys[-1].numpy(), made[0], atol=TINY)
        again.rename_labels({"new": "golden wheat"})  # a row made from a text follows the text
        np.testing.assert_allclose(again.memory.keys[-1].numpy(), made[1], atol=TINY)
    again.remove_labels(["new"])
    again.remove_documents(["d"])
    again.rename_labels({"L0": data.labels.texts[0]})
    np.testing.assert_allclose(again.memory.keys.numpy(), before.numpy(), atol=TINY)


def test_tuning_takes_new_labels_leaves_what_was_removed_and_refuses_other_texts(
    toy_folder: Path, tiny_transformer: Path
) -> None:
    data = ls.load(toy_folder)
    model = ls.Model.from_encoder(str(tiny_transformer), data.labels)
    model.tune(data)
    rows = np.flatnonzero(np.diff(data.train.targets.indptr) > 0)[:2]
    names = [data.train.ids[i] for i in rows.tolist()]
    model.remove_documents(names[:1])
    targets = data.train.targets.tolil()
    targets[rows[1]] = 0
    targets[rows[1], 3] = 1
    changed = dataclasses.replace(data, train=dataclasses.replace(data.train, targets=sp.csr_array(targets)))
    model.tune(changed)
    assert model.memory.document_keys.find(names[0]) is None
    found = model.memory.document_keys.find(names[1])
    assert found is not None
    segment, row = found
    assert segment.slots[segment.indptr[row] : segment.indptr[row + 1]].tolist() == [3]
    assert model.memory.n_documents == len(data.train) - 1
    texts = list(data.train.texts)
    texts[rows[1]] = "quite another text"
    with pytest.raises(ls.DataError, match="has the id of a document of the model with another text"):
        model.tune(dataclasses.replace(data, train=dataclasses.replace(data.train, texts=texts)))


def test_a_folder_that_another_changed_is_not_saved_over_by_name_either(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path
) -> None:
    data = ls.load(toy_folder)
    ls.Model.from_encoder(str(tiny_transformer), data.labels).save(tmp_path / "m")
    first, second = ls.Model.load(tmp_path / "m"), ls.Model.load(tmp_path / "m")
    first.add_labels(["aa"])
    first.save()
    second.add_labels(["bb"])
    with pytest.raises(ls.ModelError, match="was changed by another since it was opened"):
        second.save(tmp_path / "m")
    (tmp_path / "m" / ".manifest.writing-1-ab.json").write_text("{}")
    first.add_labels(["cc"])
    first.save()
    assert not list((tmp_path / "m").glob(".manifest.writing-*"))
    assert "aa" in ls.Model.load(tmp_path / "m").labels.ids


def test_saving_changes_no_prediction_of_the_model_in_memory(model: ls.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    model.remove_labels(["L0", "L1"])  # much of a segment, so that saving writes it anew
    before = model.predict(TEXTS, 2)
    model.save()
    for after in (model.predict(TEXTS, 2), ls.Model.load(tmp_path / "m").predict(TEXTS, 2)):
        for i in range(len(TEXTS)):
            assert [name for name, _, _ in after.named(i)] == [name for name, _, _ in before.named(i)]
        np.testing.assert_allclose(after.scores, before.scores, atol=VOTES)


def test_voting_that_was_chosen_outlives_the_last_document(model: ls.Model) -> None:
    chosen = Voting(label_depth=3, document_depth=2, temperature=0.02, weight=0.7, softmax="apart")
    model.memory.voting = chosen
    before = model.predict(TEXTS, 3)
    documents = [d for d in model.memory.document_keys.ids(np.arange(3))]
    texts = [model.memory.document_keys.texts(np.array([i]))[0] for i in range(3)]
    model.remove_documents(documents)
    assert model.memory.voting.scoring == "similarity"
    model.add_documents(texts, [["L0"], ["L1", "L3"], ["L2"]], documents)
    assert model.memory.voting == chosen
    np.testing.assert_allclose(model.predict(TEXTS, 3).scores, before.scores, atol=VOTES)


def test_reasons_sum_to_the_score_among_some_labels_with_probabilities_too(
    toy_folder: Path, tiny_transformer: Path
) -> None:
    data = ls.load(toy_folder)
    model = ls.Model.from_encoder(str(tiny_transformer), data, device="cpu")
    some = list(data.labels.ids)[::4]
    model.calibrate(data, split="train")
    for options in ({"probabilities": True}, {"threshold": 0.0}, {}):
        told = model.predict(list(data.valid.texts)[:8], 4, labels=some, why=True, **options)  # type: ignore[arg-type]
        assert told.reasons is not None and np.isfinite(told.scores).any()
        for scores, row in zip(told.scores, told.reasons, strict=True):
            for score, reasons in zip(scores[np.isfinite(scores)], row, strict=False):
                assert sum(reason.share for reason in reasons) == pytest.approx(score, abs=rounding(len(data.train)))


def test_among_some_labels_scores_are_those_among_all(toy_folder: Path, tiny_transformer: Path) -> None:
    data = ls.load(toy_folder)
    model = ls.Model.from_encoder(str(tiny_transformer), data)
    queries = torch.from_numpy(model.encode(list(data.valid.texts)[:20]))
    everything, scores = model.memory.predict(Query(queries), len(data.labels))
    some = np.arange(0, len(data.labels), 3)
    answer = model.memory.answer(Query(queries), len(some), among=some)
    found, own = answer.numbers, answer.scores
    for row in range(20):
        expected = {n: s for n, s in zip(everything[row].tolist(), scores[row].tolist(), strict=True) if n in set(some)}
        assert {n: s for n, s in zip(found[row].tolist(), own[row].tolist(), strict=True) if n >= 0} == pytest.approx(
            {n: s for n, s in expected.items() if n >= 0}, abs=VOTES
        )
