"""Vocabularies: TSV, CSV and SKOS as label spaces."""

from __future__ import annotations

import builtins
import gzip
import logging
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import damage, jsonl, put, refused, truth

from labelspace.data.formats.corpus import ReadSettings
from labelspace.data.formats.text import TextFiles
from labelspace.data.formats.vocabulary import Vocabulary, find_vocabulary, read_vocabulary
from labelspace.data.loading import load
from labelspace.errors import DataError, LabelspaceError, MissingExtraError, SettingsError

Y = "http://example.org/y/"
TTL = """@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
@prefix owl: <http://www.w3.org/2002/07/owl#> .
@prefix y: <http://example.org/y/> .
y:scheme a skos:ConceptScheme ; skos:prefLabel "scheme"@en .
y:p2 a skos:Concept ; skos:prefLabel "cats"@en, "kissat"@fi ; skos:altLabel "pussycats"@en, "felines"@en, "mirrit"@fi ;
  skos:broader y:p1 .
y:p1 a skos:Concept ; skos:prefLabel "mammals"@EN, "nis\\u00e4kk\\u00e4\\u00e4t"@fi ; skos:narrower y:p3 .
y:p3 a skos:Concept ; skos:prefLabel "dogs" ; skos:broader y:p1 ; skos:notation "59.1" .
y:p4 a skos:Concept ; skos:prefLabel "vain suomeksi"@fi .
y:p5 a skos:Concept ; skos:prefLabel "old"@en ; owl:deprecated true .
y:p6 a skos:Concept .
"""
RDF = """<?xml version="1.0"?>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:skos="http://www.w3.org/2004/02/skos/core#">
<skos:Concept rdf:about="http://example.org/y/p1"><skos:prefLabel xml:lang="en">mammals</skos:prefLabel></skos:Concept>
</rdf:RDF>
"""
NT = (
    "<http://example.org/y/p1> <http://www.w3.org/1999/02/22-rdf-syntax-ns#type> "
    "<http://www.w3.org/2004/02/skos/core#Concept> .\n"
    '<http://example.org/y/p1> <http://www.w3.org/2004/02/skos/core#prefLabel> "mammals"@en .\n'
)


def vocabulary(path: Path, **options) -> Vocabulary:
    return read_vocabulary(path, ReadSettings(**options), TextFiles())


def as_dict(found: Vocabulary) -> dict[str, str]:
    return {uri.removeprefix(Y): text for uri, text in zip(found.labels.ids, found.labels.texts, strict=True)}


def test_tsv(tmp_path, caplog):
    caplog.set_level(logging.INFO, "labelspace")
    content = "<u:1>\tcats and  dogs\t59.1\n\nu:2\t mice \n<u:3>\n<u:4>\t\t5\n"
    for name, text in (("a.tsv", content), ("a.tsv.gz", "\ufeffuri\tlabel\tnotation\n" + content)):
        found = vocabulary(put(tmp_path / name, text))
        assert as_dict(found) == {"u:1": "cats and  dogs", "u:2": "mice"}
        assert found.withdrawn == ["u:3", "u:4"] and found.language == "" and found.names == found.labels.texts
    assert "2 of 4 concepts have no label and are left out" in caplog.text
    assert found.options["language"] is None and found.options["label_fields"] == "preferred"


def test_csv(tmp_path, caplog):
    caplog.set_level(logging.INFO, "labelspace")
    path = put(
        tmp_path / "a.csv",
        'uri,notation,label_fi,label_en\n<u:1>,1,kissat,"cats, all"\nu:2,,koirat,\nu:3,,,\nu:4,,kalat,fish\n',
    )
    found = vocabulary(path)
    assert as_dict(found) == {"u:1": "cats, all", "u:4": "fish"} and found.withdrawn == ["u:2", "u:3"]
    assert "fi (3 concepts), en (2 concepts); taking en" in caplog.text and "2 of 4 concepts" in caplog.text
    assert as_dict(vocabulary(path, language="FI")) == {"u:1": "kissat", "u:2": "koirat", "u:4": "kalat"}
    with pytest.raises(DataError, match="'sv', only in fi"):
        vocabulary(path, language="sv")
    fewer = put(tmp_path / "b.csv", "uri,label_sv,label_fi\nu:1,,yksi\nu:2,tv\u00e5,kaksi\n")
    assert (vocabulary(fewer).language, vocabulary(fewer, language="sv").withdrawn) == ("fi", ["u:1"])


def test_skos(tmp_path, caplog):
    caplog.set_level(logging.INFO, "labelspace")
    path = put(tmp_path / "a.ttl", TTL)
    found = vocabulary(path)
    assert as_dict(found) == {"p1": "mammals", "p2": "cats", "p3": "dogs"}
    assert [uri.removeprefix(Y) for uri in found.withdrawn] == ["p4", "p5", "p6"] and found.language == "en"
    assert "en (3 concepts), fi (3 concepts); taking en" in caplog.text
    assert "3 of 6 concepts have no label in en" in caplog.text
    everything = vocabulary(path, label_fields="preferred+broader+alternative")
    assert everything.fields == "preferred+alternative+broader" and everything.names == ["mammals", "cats", "dogs"]
    assert list(everything.labels.texts) == ["mammals", "cats; felines; pussycats (mammals)", "dogs (mammals)"]
    alternative = vocabulary(path, label_fields="preferred+alternative", language="fi")
    expected = {"p1": "nis\u00e4kk\u00e4\u00e4t", "p2": "kissat; mirrit", "p3": "dogs", "p4": "vain suomeksi"}
    assert as_dict(alternative) == expected


@pytest.mark.parametrize(("name", "content"), [("a.rdf", RDF), ("a.xml", RDF), ("a.skos", RDF), ("a.nt", NT)])
def test_other_syntaxes(tmp_path, name, content):
    for path in (put(tmp_path / name, content), put(tmp_path / f"{name}.gz", content)):
        assert as_dict(vocabulary(path)) == {"p1": "mammals"}
    assert len(vocabulary(put(tmp_path / "b.skos", TTL)).labels) == 3


def test_relative_addresses_do_not_depend_on_the_place(tmp_path):
    content = TTL.replace("y:p1", "<p1>")
    one, two = (vocabulary(put(tmp_path / folder / "a.ttl", content)) for folder in ("b", "c"))
    assert one.labels == two.labels and str(tmp_path) not in "".join(one.labels.ids)


def test_label_fields_are_checked(tmp_path):
    path = put(tmp_path / "a.ttl", TTL)
    for asked in ("title", "alternative", "preferred+", "preferred+preferred", ""):
        with pytest.raises(SettingsError, match="preferred\\+alternative\\+broader"):
            vocabulary(path, label_fields=asked)
    with pytest.raises(SettingsError, match="SKOS"):
        vocabulary(put(tmp_path / "a.tsv", "u:1\tx\n"), label_fields="preferred+broader")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.tsv", "u:1\ta\nu:1\tb\n", ["line 2", "'u:1'", "line 1"]),
        ("a.tsv", "u:1\ta\tb\tc\n", ["line 1", "4 fields"]),
        ("a.tsv", "u:1\ta\n<>\tb\n", ["line 2", "no URI"]),
        ("a.tsv", "u:1\nu:2\n", ["no concept has a label"]),
        ("a.tsv", "", ["no concepts"]),
        ("a.csv", "id,label_en\n1,a\n", ["line 2", "'uri'"]),
        ("a.csv", "uri,name\n1,a\n", ["line 2", "'label_en'"]),
        ("a.csv", "uri,label_en\nu:1,a,b\n", ["line 2", "3 fields"]),
        ("a.ttl", "@prefix skos: <x> .\n\n<a> skos:b .\n", ["line 3", "not whole Turtle"]),
        ("a.ttl", "<a> <b> ??? .\n", ["not whole Turtle (rdflib stops"]),
        ("a.ttl", "<a> <b> <c> .\n", ["no skos:Concept"]),
        ("a.rdf", "<rdf>\n<unclosed>", ["line 2", "not whole RDF/XML"]),
        ("a.nt", "x\n", ["not whole N-Triples"]),
        ("a.skos", "x\n", ["not whole RDF"]),
        ("a.doc", "x", [".ttl"]),
    ],
)
def test_refusals(tmp_path, name, content, parts):
    path = put(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        vocabulary(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for part in parts:
        assert part in message
    with pytest.raises(DataError, match="no such vocabulary"):
        vocabulary(tmp_path / "none.tsv")


def test_missing_rdflib_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "rdflib":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"labelspace\[skos\]"):
        vocabulary(put(tmp_path / "a.ttl", TTL))


def test_the_vocabulary_in_a_folder(tmp_path):
    assert find_vocabulary(tmp_path) is None
    only = put(tmp_path / "yso.ttl.gz", TTL)
    put(tmp_path / "train.tsv", "x\n")
    assert find_vocabulary(tmp_path) == only
    other = put(tmp_path / "stw.rdf", RDF)
    with pytest.raises(DataError, match=r"stw\.rdf and yso\.ttl\.gz"):
        find_vocabulary(tmp_path)
    named = put(tmp_path / "Vocabulary.csv", "uri,label_en\nu:1,a\n")
    assert find_vocabulary(tmp_path) == named
    put(tmp_path / "subjects.tsv", "u:1\ta\n")
    with pytest.raises(DataError, match=r"Vocabulary\.csv and subjects\.tsv"):
        find_vocabulary(tmp_path)
    other.unlink()


# Tables whose labels are a vocabulary


def test_tables_take_a_vocabulary(tmp_path, caplog):
    voc = put(tmp_path / "voc" / "a.ttl", TTL)
    rows = [{"text": "a", "labels": [f"{Y}p2", "dogs", f"<{Y}p5>"]}, {"text": "b", "labels": []}]
    put(tmp_path / "d" / "train.jsonl", jsonl(rows))
    put(tmp_path / "d" / "test.csv", f"text,labels\nc,{Y}p1\nd,{Y}p6;mammals\n")
    data = load(tmp_path / "d", label_vocabulary=voc, label_fields="preferred+broader")
    assert list(data.labels.texts) == ["mammals", "cats (mammals)", "dogs (mammals)"]
    assert truth(data.train) == [{1: 1.0, 2: 1.0}, {}] and truth(data.test) == [{0: 1.0}, {0: 1.0}]
    assert data.options["format"] == "table" and data.options["label_vocabulary"] == str(voc)
    assert data.options["language"] == "en" and data.options["label_fields"] == "preferred+broader"
    warned = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
    assert len(warned) == 1 and "2 times" in warned[0] and f"{Y}p5" in warned[0]
    put(tmp_path / "d" / "test.csv", f"text,labels\nc,{Y}p99\n")
    refused(tmp_path / "d", "test.csv, line 2", "p99", "a.ttl", "nearest", label_vocabulary=voc)
    put(tmp_path / "d" / "labels.txt", "a\n")
    refused(tmp_path / "d", "labels.txt", "label_vocabulary", label_vocabulary=voc)


def test_a_name_of_two_concepts_is_refused(tmp_path):
    voc = put(tmp_path / "v.tsv", "<u:1>\tbanks\n<u:2>\tbanks\n")
    path = put(tmp_path / "a.jsonl", jsonl([{"text": "x", "labels": ["u:2"]}, {"text": "x", "labels": ["banks"]}]))
    refused(path, "a.jsonl, line 2", "'banks'", "u:1 and of u:2", label_vocabulary=voc)


def test_formats_with_own_labels_take_no_vocabulary(toy_folder, tmp_path):
    with pytest.raises(SettingsError, match="lf has its own labels"):
        load(toy_folder, label_vocabulary=put(tmp_path / "v.tsv", "u\tx\n"))


# Any content


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_skos_is_read_back_exactly(data):
    from rdflib import Graph, Literal, URIRef
    from rdflib.namespace import RDF as SYNTAX
    from rdflib.namespace import SKOS

    names = data.draw(st.lists(st.dictionaries(st.sampled_from(["en", "fi"]), NAMES), min_size=1, max_size=5))
    names[0]["en"] = "first"
    graph, uris = Graph(), [f"{Y}{i}" for i in range(len(names))]
    others: dict[str, set[str]] = {uri: set() for uri in uris}
    broader: dict[str, set[str]] = {uri: set() for uri in uris}
    for uri, labels in zip(uris, names, strict=True):
        graph.add((URIRef(uri), SYNTAX.type, SKOS.Concept))
        for language, label in labels.items():
            graph.add((URIRef(uri), SKOS.prefLabel, Literal(label, language)))
        for label in data.draw(st.lists(NAMES, max_size=2)):
            graph.add((URIRef(uri), SKOS.altLabel, Literal(label, "en")))
            others[uri].add(label)
        for other in data.draw(st.lists(st.sampled_from(uris), max_size=2)):
            graph.add((URIRef(uri), SKOS.broader, URIRef(other)))
            broader[uri].add(other)
    preferred = {uri: labels["en"] for uri, labels in zip(uris, names, strict=True) if "en" in labels}
    expected = {}
    for uri, name in preferred.items():
        text = "; ".join([name, *sorted(others[uri] - {name})])
        above = sorted({preferred[other] for other in broader[uri] if other in preferred})
        expected[uri] = text + (f" ({'; '.join(above)})" if above else "")
    with tempfile.TemporaryDirectory() as folder:
        for suffix, kind in ((".ttl", "turtle"), (".rdf", "xml"), (".nt", "nt")):
            path = Path(folder, f"a{suffix}")
            graph.serialize(path, format=kind, encoding="utf-8")
            found = vocabulary(path, label_fields="preferred+alternative+broader")
            assert dict(zip(found.labels.ids, found.labels.texts, strict=True)) == expected
            assert sorted([*found.labels.ids, *found.withdrawn]) == uris


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False), st.sampled_from(["a.ttl", "a.rdf", "a.nt", "a.tsv", "a.csv", "a.skos"]))
def test_malformed(draw: random.Random, name):
    contents = {
        "a.ttl": TTL, "a.rdf": RDF, "a.nt": NT, "a.skos": RDF, "a.tsv": "<u:1>\ta\tn\nu:2\n",
        "a.csv": 'uri,notation,label_fi,label_en\n<u:1>,1,k,"c, a"\nu:2,,,\n',
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        content = contents[name].encode()
        path = Path(folder, name)
        path.write_bytes(damage(content, draw))
        zipped = Path(folder, f"{name}.gz")
        zipped.write_bytes(damage(gzip.compress(content), draw))
        for file in (path, zipped):
            try:
                assert len(vocabulary(file).labels) > 0
            except LabelspaceError as error:
                assert "\n" not in str(error)


def test_surrogate_pairs_of_turtle_are_joined(tmp_path, caplog):
    pytest.importorskip("rdflib")
    put(tmp_path / "train.tsv", "a\t<http://e/1>\nb\t<http://e/2>\n")
    prefix = "@prefix skos: <http://www.w3.org/2004/02/skos/core#> .\n"
    one = r'<http://e/1> a skos:Concept ; skos:prefLabel "\ud83d\ude00 smile"@en .'
    two = r'<http://e/2> a skos:Concept ; skos:prefLabel "dog \ud800"@en .'
    put(tmp_path / "vocab.ttl", f"{prefix}{one}\n{two}\n")
    assert list(load(tmp_path).labels.texts) == ["\U0001f600 smile", "dog \ufffd"]
    assert "vocab.ttl: 1 halves of surrogate pairs" in caplog.text
