"""Vocabularies: label spaces that come apart from the documents, as subject indexing has them.

- TSV: ``<uri>``, label and perhaps a notation, without a header.
- CSV: a header with ``uri`` and a column ``label_en``, ``label_fi``, ... for each language, perhaps ``notation``.
- SKOS and SKOS-XL as Turtle, RDF/XML or N-Triples: each ``skos:Concept`` with its labels of one language. Read by
  rdflib.

The label's id is the URI, its text the preferred label; of SKOS, ``label_fields`` adds alternative labels after it and
the broader concepts in parentheses: "cats; felines (mammals)". A concept without a label in the chosen language, or
one that is marked as deprecated, is withdrawn: no label, but documents may still name it.
"""

from __future__ import annotations

import gzip
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ...base.words import form
from ...errors import DataError, MissingExtraError, SettingsError
from ...types import Labels
from .corpus import ReadSettings, Records
from .labels import LabelLookup
from .rows import records, suffix
from .text import Halves, TextFiles, listed, plain_lines, refuse_broken_link, shown_files, text_value

logger = logging.getLogger("labelspace.data")

STEMS = ("vocab", "vocabulary", "subjects")
RDF = {".ttl": "turtle", ".rdf": "xml", ".xml": "xml", ".nt": "nt", ".skos": ""}
RDF_NAMES = {"turtle": "Turtle", "xml": "RDF/XML", "nt": "N-Triples", "": "RDF"}
SUFFIXES = (".tsv", ".csv", *RDF)
SKOS_XL = "http://www.w3.org/2008/05/skos-xl#"
FIELDS = ("preferred", "alternative", "broader")


@dataclass(frozen=True)
class Vocabulary:
    """A label space from a vocabulary file.

    Args:
        path: the file.
        labels: URIs and texts.
        names: the preferred label of each, by which documents may name it.
        withdrawn: URIs of concepts that are not labels.
        language: the language of the labels; "" where the file does not speak of languages.
        fields: what the texts are made of, joined by "+".
    """

    path: Path
    labels: Labels
    names: Sequence[str]
    withdrawn: Sequence[str]
    language: str
    fields: str

    @property
    def options(self) -> dict[str, str | int | None]:
        """How the vocabulary was read, for the record."""
        return {"label_vocabulary": str(self.path), "language": self.language or None, "label_fields": self.fields}

    def concepts(self) -> ConceptLookup:
        """Names to label numbers; the withdrawn concepts have the numbers after those of the labels."""
        ids = [*self.labels.ids, *self.withdrawn]
        return ConceptLookup(Labels(ids, [*self.names, *self.withdrawn]), range(1, len(ids) + 1), self.path)


class ConceptLookup(LabelLookup):
    """URIs, in angle brackets or not, and preferred labels to label numbers."""

    def find(self, name: str) -> int | None:
        return super().find(bare(name))

    def number(self, name: str, path: Path, line: int) -> int:
        if self.find(name) == -1:
            label = bare(name)
            both = zip(self.labels.ids, self.labels.texts, strict=True)
            same = [known[0] for known in both if form(label) in map(form, known)][:2]
            raise DataError(f"the label {name[:80]!r} is that of {same[0]} and of {same[1]}; use URIs", path, line)
        return super().number(bare(name), path, line)


def bare(uri: str) -> str:
    """A URI without blanks and angle brackets around it."""
    uri = uri.strip()
    return uri[1:-1].strip() if uri.startswith("<") and uri.endswith(">") else uri


def find_vocabulary(folder: Path) -> Path | None:
    """The vocabulary in a folder: by its name, or the only RDF file; None where there is none."""
    files = shown_files(folder, SUFFIXES)
    found = [path for path in files if path.name.partition(".")[0].lower() in STEMS]
    # Not by .xml, which may be anything
    found = found or [path for path in files if suffix(path) in (".ttl", ".rdf", ".skos", ".nt")]
    if len(found) > 1:
        raise DataError(
            f"{found[0].name} and {found[1].name} may both be the vocabulary; name one with --label-vocabulary", folder
        )
    return found[0] if found else None


def read_vocabulary(path: Path, settings: ReadSettings, files: TextFiles) -> Vocabulary:
    """Read a vocabulary in the language and with the label fields of the settings.

    Raises:
        DataError: a file that cannot be read, or one without the language.
        SettingsError: label fields that this vocabulary does not have.
        MissingExtraError: a SKOS file, but rdflib is not installed.
    """
    kind = suffix(path)
    refuse_broken_link(path)
    if not path.is_file():
        raise DataError("there is no such vocabulary file", path)
    if kind not in SUFFIXES:
        raise DataError(f"a vocabulary is a file of kind {', '.join(SUFFIXES)}, plain or .gz", path)
    fields = _fields(settings.label_fields)
    if kind in RDF:
        return _read_skos(path, settings.language, fields)
    if fields != ("preferred",):
        raise SettingsError(f"label_fields: {path} has preferred labels only; alternative and broader ones need SKOS")
    return files.read(path, lambda stream: _read_table(stream, path, settings.language))


def _fields(asked: str) -> tuple[str, ...]:
    parts = tuple(asked.split("+")) if asked != "auto" else FIELDS[:1]
    if parts[0] != "preferred" or len(set(parts)) < len(parts) or not set(parts) <= set(FIELDS):
        known = "preferred, preferred+alternative, preferred+broader, preferred+alternative+broader"
        raise SettingsError(f"label_fields of a vocabulary must be one of auto, {known}, got {asked!r}")
    return tuple(field for field in FIELDS if field in parts)


def _choose_language(asked: str | None, counts: Mapping[str, int], path: Path) -> str:
    """The asked language, else English where there is any, else that of most concepts; "" where none is stated."""
    order = sorted(counts, key=lambda language: (-counts[language], language))
    shown = ", ".join(f"{language} ({counts[language]:,} concepts)" for language in order[:12])
    if asked is not None:
        near = _related(asked.lower(), order)
        if counts and not near:
            raise DataError(f"there is no label in the language {asked!r}, only in {shown}", path)
        if near and near[0] != asked.lower():
            logger.info("%s: the language %s is written %s here", path, asked, " and ".join(near))
        return asked.lower() if counts else ""
    chosen = "en" if _related("en", counts) else order[0] if counts else ""
    if len(counts) > 1:
        logger.info("%s: there are labels in %s; taking %s (--language takes another)", path, shown, chosen)
    return chosen


def _related(language: str, tags: Iterable[str]) -> list[str]:
    """The tags that serve for a language: its own, then those of its regions (en-GB for en), then the one without."""
    tags = list(tags)
    regions = [tag for tag in tags if tag.startswith(f"{language}-")]
    return [tag for tag in tags if tag == language] + regions + [tag for tag in tags if language.startswith(f"{tag}-")]


def _checked(
    path: Path, uris: Sequence[str], names: Sequence[str], texts: Sequence[str], language: str, fields: Sequence[str]
) -> Vocabulary:
    """Concepts with a name become labels, the others are withdrawn; counted and said."""
    kept = [row for row, name in enumerate(names) if name]
    if not kept:
        raise DataError("no concept has a label", path)
    withdrawn = [uri for uri, name in zip(uris, names, strict=True) if not name]
    if withdrawn:
        where = f" in {language}" if language else ""
        logger.info("%s: %d of %d concepts have no label%s and are left out", path, len(withdrawn), len(uris), where)
    return Vocabulary(
        path=path,
        labels=Labels([uris[row] for row in kept], [texts[row] for row in kept]),
        names=[names[row] for row in kept],
        withdrawn=withdrawn,
        language=language,
        fields="+".join(fields),
    )


# TSV and CSV


def _read_table(stream: TextIO, path: Path, asked: str | None) -> Vocabulary:
    concepts = Records("concept", path)
    columns: dict[str, list[str]] = {}
    for line, record in _tsv_rows(stream, path) if suffix(path) == ".tsv" else records(stream, path):
        if "uri" not in record:
            raise DataError(f"there is no column 'uri', only {listed(record)}", path, line)
        if not columns:
            columns = {name: [] for name in record if name == "label" or name.startswith("label_")}
        if not columns:
            raise DataError(f"there is no column 'label_en' or of another language, only {listed(record)}", path, line)
        uri = bare(text_value(record["uri"], "uri", path, line))
        if not uri:
            raise DataError("the concept has no URI", path, line)
        concepts.add(uri, uri, line)
        for name, values in columns.items():
            values.append(text_value(record[name], name, path, line).strip())
    concepts.check()
    by_language = {name.removeprefix("label_").lower(): values for name, values in columns.items() if name != "label"}
    counts = {language: sum(map(bool, values)) for language, values in by_language.items()}
    language = _choose_language(asked, counts, path)
    names = columns.get("label", [""] * len(concepts.ids))
    for tag in reversed(_related(language, by_language)):
        names = [own or other for own, other in zip(by_language[tag], names, strict=True)]
    return _checked(path, concepts.ids, names, names, language, FIELDS[:1])


def _tsv_rows(stream: TextIO, path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    for line, row in enumerate(plain_lines(stream), start=1):
        if not row.strip():
            continue
        cells = row.split("\t")
        if line == 1 and cells[0].strip() == "uri":
            continue  # a header, which some tools write
        if len(cells) > 3:
            message = f"expected <uri>, label and perhaps a notation, but the row has {len(cells)} fields"
            raise DataError(message, path, line)
        yield line, {"uri": cells[0], "label": cells[1] if len(cells) > 1 else ""}


# SKOS


def _read_skos(path: Path, asked: str | None, fields: tuple[str, ...]) -> Vocabulary:
    concepts = _parse(path)
    if not concepts.known:
        raise DataError("there is no skos:Concept in it", path)
    uris = sorted(concepts.known)
    counts = Counter(language for uri in uris for language in concepts.preferred.get(uri, {}) if language)
    language = _choose_language(asked, counts, path)

    def labels(of: Mapping[str, Mapping[str, Sequence[str]]], uri: str) -> list[str]:
        """Those of the language, else of a related one, else those of no stated one, in alphabetical order."""
        by_language = of.get(uri, {})
        tags = [*(_related(language, by_language) if language else ()), ""]
        return sorted(set(next((by_language[tag] for tag in tags if by_language.get(tag)), ())))

    several = [uri for uri in uris if len(labels(concepts.preferred, uri)) > 1]
    if several:
        first, second = labels(concepts.preferred, several[0])[:2]
        logger.warning(
            "%s: %d concepts have several preferred labels in one language, of which the first in the alphabet is "
            "taken, such as %r, not %r, for %s",
            *(path, len(several), first[:80], second[:80], several[0]),
        )
    first_labels = {uri: next(iter(labels(concepts.preferred, uri)), "") for uri in uris}
    preferred = {uri: "" if uri in concepts.deprecated else label for uri, label in first_labels.items()}

    def text(uri: str) -> str:
        name = result = preferred[uri]
        if "alternative" in fields:
            others = [label for label in labels(concepts.alternative, uri) if label != name]
            result = "; ".join([name, *others])
        if "broader" in fields:
            broader = sorted({preferred[other] for other in concepts.broader.get(uri, ()) if preferred.get(other)})
            result += f" ({'; '.join(broader)})" if broader else ""
        return result

    texts = [text(uri) for uri in uris]
    return _checked(path, uris, [preferred[uri] for uri in uris], texts, language, fields)


class _Concepts:
    """What is kept of the triples of a SKOS file; labels are by URI and language."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.deprecated: set[str] = set()
        self.preferred: dict[str, dict[str, list[str]]] = defaultdict(dict)
        self.alternative: dict[str, dict[str, list[str]]] = defaultdict(dict)
        self.broader: dict[str, list[str]] = defaultdict(list)


def _parse(path: Path) -> _Concepts:
    """Read the triples one by one; only those about labels and hierarchy are kept."""
    try:
        from rdflib import Graph
        from rdflib.namespace import OWL, SKOS
        from rdflib.namespace import RDF as SYNTAX
        from rdflib.plugins.stores.memory import SimpleMemory
        from rdflib.term import Literal, URIRef
    except ImportError:
        raise MissingExtraError(f"reading {path}", "rdflib", "skos") from None
    concepts, halves = _Concepts(), Halves()
    uri = halves.mend
    labels = {SKOS.prefLabel: concepts.preferred, SKOS.altLabel: concepts.alternative}
    # SKOS-XL: a concept has nodes, often without a name, and these have the labels
    nodes = {f"{SKOS_XL}prefLabel": concepts.preferred, f"{SKOS_XL}altLabel": concepts.alternative}
    named: list[tuple[str, str, Any]] = []
    forms: dict[Any, list[tuple[str, str]]] = defaultdict(list)

    class Kept(SimpleMemory):
        def add(self, triple: Any, context: Any, quoted: bool = False) -> None:
            subject, predicate, value = triple
            if str(predicate) == f"{SKOS_XL}literalForm" and isinstance(value, Literal):
                forms[subject].append(((value.language or "").lower(), " ".join(halves.mend(value).split())))
            if not isinstance(subject, URIRef):
                return
            if str(predicate) in nodes:
                named.append((str(predicate), uri(subject), value))
            if predicate in labels:
                if isinstance(value, Literal) and (label := " ".join(halves.mend(value).split())):
                    labels[predicate][uri(subject)].setdefault((value.language or "").lower(), []).append(label)
            elif predicate == SYNTAX.type:
                if value == SKOS.Concept:
                    concepts.known.add(uri(subject))
            elif predicate == OWL.deprecated:
                if str(value).lower() in ("true", "1"):
                    concepts.deprecated.add(uri(subject))
            elif predicate == SKOS.broader and isinstance(value, URIRef):
                concepts.broader[uri(subject)].append(uri(value))
            elif predicate == SKOS.narrower and isinstance(value, URIRef):
                concepts.broader[uri(value)].append(uri(subject))

    noise = logging.getLogger("rdflib")  # it warns of every odd literal of properties that are not read
    level = noise.level
    noise.setLevel(logging.ERROR)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            kind = RDF[suffix(path)]
            if not kind:
                head = stream.read(500).lstrip(b"\xef\xbb\xbf \t\r\n")
                stream.seek(0)
                kind = "xml" if head.startswith((b"<?xml", b"<rdf", b"<!DOCTYPE")) else "turtle"
            Graph(Kept()).parse(file=stream, format=kind, publicID="vocabulary:/")  # type: ignore[arg-type]
    except Exception as error:  # rdflib and its parsers raise errors of many types: all mean an unusable file
        line = getattr(error, "lines", None)
        line = line + 1 if isinstance(line, int) else getattr(error, "getLineNumber", lambda: None)()
        reason = getattr(error, "_why", None) or str(error).partition("\n")[0]
        if not reason or isinstance(error, AttributeError | TypeError | LookupError | AssertionError):
            reason = f"rdflib stops with {type(error).__name__}"
        name = RDF_NAMES[RDF[suffix(path)]]
        raise DataError(f"this is not whole {name} ({' '.join(str(reason).split())})", path, line) from None
    finally:
        noise.setLevel(level)
    for kind, subject, node in named:
        for language, label in forms[node]:
            known = nodes[kind][subject].setdefault(language, [])
            if label and label not in known:
                known.append(label)
    halves.say(path)
    return concepts
