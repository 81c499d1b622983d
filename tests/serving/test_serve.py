"""The service: what it answers, what it refuses, and what happens to requests side by side."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from conftest import VOTES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from snippets import Runner

import labelspace as ls
from labelspace.cli.app import main
from labelspace.evaluation.calibration import Calibration

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from labelspace.cli.serve import _address, _listening
from labelspace.serving.app import make_app
from labelspace.serving.cors import origin
from labelspace.serving.http import BodyLimit
from labelspace.serving.labels import LabelSearch
from labelspace.serving.service import Settings
from labelspace.serving.worker import BusyError, NotReadyError, Question, UnsavedError, Worker

NAMES = ["red oak", "tall fern", "wild rose", "dry moss", "Oak red"]
IDS = ["http://x.org/1?a=b", "L1", "L2", "L3", "L4"]
TEXTS = ["a red oak", "history of the wild rose", "moss", "old vine of the red moss", ""]
TOKEN = "let-me-in"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def plain(tiny_transformer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of labels alone."""
    folder = tmp_path_factory.mktemp("plain") / "m"
    ls.Model.from_encoder(str(tiny_transformer), ls.Labels(IDS, NAMES), device="cpu").save(folder)
    return folder


@pytest.fixture(scope="module")
def saved(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with documents and a calibration."""
    folder = tmp_path_factory.mktemp("saved") / "m"
    model = ls.Model.load(plain, "cpu")
    model.add_documents(["an old red oak", "ferns, tall", "roses of the wild"], [["L4"], ["L1", "L3"], ["wild rose"]])
    nothing = np.zeros((2, 0))
    model.core.calibration = Calibration(
        "logistic", "linear", ("score",), np.array([4.0]), -1.0, nothing, scoring=model.memory.settings
    )
    model.save(folder)
    return folder


@contextlib.contextmanager
def served(folder: Path, **options: Any) -> Iterator[TestClient]:
    app = make_app(lambda: ls.Model.load(folder, "cpu"), Settings(name="toy", **options))
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        yield client


def wait_for(ready: Any) -> None:
    until = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="module")
def client(saved: Path) -> Iterator[TestClient]:
    with served(saved, max_texts=7, max_k=9, max_body=20_000) as made:
        yield made


@pytest.fixture
def editable(saved: Path, tmp_path: Path) -> Iterator[tuple[TestClient, Path]]:
    shutil.copytree(saved, tmp_path / "m")
    with served(tmp_path / "m", token=TOKEN) as made:
        yield made, tmp_path / "m"


def message(answer: Any) -> str:
    """The one sentence of an error."""
    found = answer.json()
    assert list(found) == ["error"] and found["error"]["status"] == answer.status_code
    said = found["error"]["message"]
    assert isinstance(said, str) and said and "\n" not in said and "Traceback" not in said
    return said


# Predictions


def test_predictions_are_those_of_the_model(client: TestClient, saved: Path) -> None:
    model = ls.Model.load(saved, "cpu")
    pred = model.predict(TEXTS, 3, probabilities=True, why=True)
    answer = client.post("/v1/predict", json={"texts": TEXTS, "k": 3, "why": True, "reasons": 2}).json()
    assert answer["model"] == {"name": "toy", "revision": 1} and answer["note"] is None
    assert len(answer["predictions"]) == len(TEXTS)
    for row, told in enumerate(answer["predictions"]):
        assert [label["id"] for label in told["labels"]] == [name for name, _, _ in pred.named(row)]
        assert [label["text"] for label in told["labels"]] == [text for _, text, _ in pred.named(row)]
        for place, label in enumerate(told["labels"]):
            assert label["score"] == pytest.approx(float(pred.scores[row, place]), rel=1e-5)
            assert label["probability"] == pytest.approx(float(pred.probabilities[row, place]), rel=1e-5)
            assert len(label["why"]) <= 2
            shares = sum(reason["share"] for reason in label["why"]) + (label["more"] or {"share": 0})["share"]
            assert shares == pytest.approx(label["score"], rel=1e-4)
            left = pred.reasons[row][place][2:]
            assert (label["more"] or {"keys": 0})["keys"] == len(left)
    without = client.post("/v1/predict", json={"texts": TEXTS, "k": 3}).json()["predictions"]
    assert all(label["why"] is None and label["more"] is None for told in without for label in told["labels"])


def test_a_threshold_is_one_of_probabilities(client: TestClient, saved: Path, plain: Path) -> None:
    model = ls.Model.load(saved, "cpu")
    for least in (0.0, 0.3, 0.45, 1.0):
        pred = model.predict(TEXTS, 5, threshold=least)
        found = client.post("/v1/predict", json={"texts": TEXTS, "threshold": least}).json()["predictions"]
        for row, told in enumerate(found):
            assert [label["id"] for label in told["labels"]] == [name for name, _, _ in pred.named(row)]
    with served(plain) as other:
        answer = other.post("/v1/predict", json={"texts": ["x"], "threshold": 0.5})
        assert answer.status_code == 422 and "not calibrated" in message(answer)
        found = other.post("/v1/predict", json={"texts": ["x"]}).json()
        assert found["predictions"][0]["labels"][0]["probability"] is None and "no probabilities" in found["note"]
        answer = other.post("/v1/predict", json={"texts": ["x"], "weight": 0.5})
        assert answer.status_code == 422 and "no documents" in message(answer)


def test_the_weight_of_documents_can_be_asked_for(client: TestClient, saved: Path) -> None:
    import dataclasses

    model = ls.Model.load(saved, "cpu")
    own = model.memory.voting.weight
    model.memory.voting = dataclasses.replace(model.memory.voting, weight=0.75)
    pred = model.predict(TEXTS, 5)
    found = client.post("/v1/predict", json={"texts": TEXTS, "weight": 0.75}).json()
    assert "weight" in found["note"]
    for row, told in enumerate(found["predictions"]):
        assert {label["id"]: label["score"] for label in told["labels"]} == pytest.approx(
            {name: score for name, _, score in pred.named(row)}, rel=1e-4
        )
        assert all(label["probability"] is None for label in told["labels"])
    answer = client.post("/v1/predict", json={"texts": TEXTS, "weight": 0.75, "threshold": 0.1})
    assert answer.status_code == 422 and "threshold" in message(answer)
    again = client.post("/v1/predict", json={"texts": TEXTS, "weight": own}).json()
    assert again["note"] is None and again["predictions"][0]["labels"][0]["probability"] is not None


def test_bodies_may_be_gzip(client: TestClient) -> None:
    def post(content: bytes, encoding: str) -> Any:
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        return client.post("/v1/predict", content=content, headers=headers)

    plain = json.dumps({"texts": ["an oak"], "k": 1}).encode()
    labels = [answer.json()["predictions"] for answer in (post(plain, "identity"), post(gzip.compress(plain), "gzip"))]
    assert labels[0] == labels[1] and labels[0][0]["labels"]
    for content, encoding, status, part in (
        (plain, "gzip", 400, "the body is not gzip"),
        (gzip.compress(plain)[:-12], "gzip", 400, "cut short"),
        (gzip.compress(b" " * 2_000_000 + plain), "gzip", 413, "20000 bytes at most, this one has more"),
        (gzip.compress(plain) + b"more", "gzip", 400, "the body is not gzip"),
        *((plain, coding, 415, f"gzip, got {coding!r}") for coding in ("br", "deflate", "zstd", "gzip, gzip")),
    ):
        answer = post(content, encoding)
        assert answer.status_code == status and part in answer.json()["error"]["message"]
        assert ("accept-encoding" in answer.headers) == (status == 415)
    in_parts = gzip.compress(plain[:9]) + gzip.compress(plain[9:])
    assert post(in_parts, "x-gzip").json()["predictions"] == labels[0]  # of which the first was read alone


def test_only_some_labels_can_be_asked_for(client: TestClient, saved: Path) -> None:
    model = ls.Model.load(saved, "cpu")
    some = ["L2", "red oak", "dry moss"]  # an id, and texts
    pred = model.predict(TEXTS, 9, some, probabilities=True)
    found = client.post("/v1/predict", json={"texts": TEXTS, "k": 9, "labels": some}).json()["predictions"]
    for row, told in enumerate(found):
        assert [label["id"] for label in told["labels"]] == [name for name, _, _ in pred.named(row)]
        for place, label in enumerate(told["labels"]):
            assert label["probability"] == pytest.approx(float(pred.probabilities[row, place]), rel=1e-4)
    assert {label["id"] for label in found[0]["labels"]} == {"L2", IDS[0], "L3"}
    weighted = model.with_weight(0.75).predict(TEXTS[:1], 9, some)
    asked = {"texts": TEXTS[:1], "labels": some, "weight": 0.75, "why": True}
    told = client.post("/v1/predict", json=asked).json()["predictions"][0]["labels"]
    assert [label["id"] for label in told] == [name for name, _, _ in weighted.named(0)] and told[0]["why"]
    form = urlencode([("text", TEXTS[0]), *(("labels", name) for name in some)])
    single = client.post("/projects/toy/suggest", content=form, headers=FORM).json()["results"]
    body = {"documents": [{"text": text} for text in TEXTS]}
    batch = client.post("/projects/toy/suggest-batch", params={"labels": some}, json=body).json()
    assert [hit["uri"] for hit in single] == [label["id"] for label in found[0]["labels"]]
    assert [[hit["uri"] for hit in item["results"]] for item in batch] == [
        [label["id"] for label in told["labels"]] for told in found
    ]
    for labels, part in (
        (["tall fern", "wild rosé"], "no label 'wild rosé'; the nearest are 'wild rose'"),
        (["x" * 9000], "xxx…"), ([], "labels: "), ([""], "labels[0]: "), ([3], "labels[0]: "), ("L1", "labels: "),
    ):  # fmt: skip
        answer = client.post("/v1/predict", json={"texts": ["a"], "labels": labels})
        assert answer.status_code == 422 and part in message(answer) and len(message(answer)) < 400
    answer = client.post("/projects/toy/suggest", data={"text": "a", "labels": "wild rosé"})
    assert answer.status_code == 422 and "the nearest are 'wild rose'" in message(answer)


def test_scripts_of_other_origins_may_ask_where_they_are_allowed(
    saved: Path, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, other = "https://app.example.org", {"Origin": "http://other.example"}
    ask = {"Origin": app, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-y"}
    assert client.options("/v1/predict", headers=ask).status_code == 405
    assert "access-control-allow-origin" not in client.get("/healthz", headers=ask).headers
    for origins, allowed in (((app, "http://localhost:3000"), app), (("*",), "*")):
        with served(saved, origins=origins, max_body=1000) as open_:
            before = open_.options("/v1/predict", headers=ask)
            assert before.status_code == 200 and before.headers["access-control-allow-origin"] == allowed
            assert "PATCH" in before.headers["access-control-allow-methods"]
            assert before.headers["access-control-allow-headers"] == "content-type,x-y"
            answers = [
                open_.post("/v1/predict", json={"texts": ["a"]}, headers=ask),
                open_.post("/projects/toy/suggest", data={"text": "a"}, headers=ask),
                open_.post("/v1/predict", json={"texts": []}, headers=ask),
                open_.post("/v1/predict", json={"texts": ["a" * 2000]}, headers=ask),
                open_.get("/nothing", headers=ask),
                open_.put("/v1/model", headers=ask),
                open_.head("/v1/model", headers=ask),
                open_.post("/v1/labels", json={}, headers=ask),
            ]
            with monkeypatch.context() as patched:
                patched.setattr(open_.app.state.service, "described", lambda: 1 / 0)  # type: ignore[attr-defined]
                answers.append(open_.get("/v1/model", headers=ask))
            assert [answer.status_code for answer in answers] == [200, 200, 422, 413, 404, 405, 200, 403, 500]
            for answer in answers:
                assert answer.headers["access-control-allow-origin"] == allowed, answer.request.url
                assert (
                    "Origin" in answer.headers["vary"]
                    and "Retry-After" in (answer.headers["access-control-expose-headers"])
                )
            for answer in (open_.get("/healthz", headers=other), open_.get("/healthz")):
                assert answer.headers.get("access-control-allow-origin") == (
                    "*" if allowed == "*" and "origin" in answer.request.headers else None
                )
                assert answer.headers["vary"] == "Origin"
            refused = open_.options("/v1/predict", headers={**ask, **other})
            if allowed != "*":
                assert refused.status_code == 400 and "--cors http://other.example" in message(refused)
                assert "access-control-allow-origin" not in refused.headers and "Origin" in refused.headers["vary"]
            refused = open_.options("/v1/predict", headers={**ask, "Access-Control-Request-Method": "BREW"})
            assert refused.status_code == 400 and "method" in message(refused)


def test_origins_are_spelled_as_browsers_send_them() -> None:
    for given_, sent in (
        ("*", "*"), ("https://App.Example.org", "https://app.example.org"), ("http://localhost:3000/", "http://localhost:3000"),
        ("https://a.org:443", "https://a.org"), ("http://a.org:443", "http://a.org:443"), ("http://[::1]:80", "http://[::1]"),
        ("https://bücher.example", "https://xn--bcher-kva.example"), (" http://a.org ", "http://a.org"),
    ):  # fmt: skip
        assert origin(given_) == sent
    for wrong in ("", "app.example.org", "localhost:3000", "https://a.org/x", "https://", "http://a:b", "https://*.a.org",
                  "null", "http://u@a.org", "http://a.org?x", "http://a b", "http://a,b"):  # fmt: skip
        with pytest.raises(ls.SettingsError, match="--cors takes"):
            origin(wrong)


def test_limits_and_bad_requests_are_told_in_one_sentence(client: TestClient) -> None:
    def post(**body: Any) -> Any:
        return client.post("/v1/predict", json=body)

    def raw(content: bytes) -> Any:
        return client.post("/v1/predict", content=content, headers={"Content-Type": "application/json"})

    for answer, status, part in (
        (post(texts=["x"] * 8), 413, "7 texts at most, this one has 8"),
        (post(texts=["x"], k=10), 422, "k may be 9 at most, got 10"),
        (post(texts=["x"], k=0), 422, "k: "),
        (post(texts=["x"], k="3"), 422, "k: "),
        (post(texts=["x"], threshold=1.5), 422, "threshold: "),
        (post(texts=[]), 422, "texts: "),
        (post(texts=["a", 3]), 422, "texts[1]: "),
        (post(text="a"), 422, "texts is missing"),
        (post(texts=["a"], size=3), 422, "no field 'size'"),
        (post(texts=["a" * 20_000]), 413, "20000 bytes at most"),
        (client.post("/v1/predict", content=iter([b"a" * 9_000] * 4)), 413, "20000 bytes at most"),
        (raw(b'{"texts": ['), 400, "not JSON: expecting value at line 1, column 12"),
        (raw(b'{"texts": ["a"],\n "k": 1 "x"}'), 400, "expecting ',' delimiter at line 2, column 9"),
        (raw(b'{"texts": ["a"], "k": ' + b"9" * 5000 + b"}"), 400, "too many digits"),
        (raw(b""), 422, "the body is missing"),
        (client.post("/v1/predict", content=b"x", headers={"Content-Type": "text/plain"}), 415, "text/plain"),
        (raw(b'{"texts": ["\\ud800"]}'), 422, "surrogate"),
        (raw(b"[" * 15_000), 400, "nested too deep"),
        (raw(b'{"texts": ["a"], "k": 1, "texts": ["b"]}'), 400, "the key 'texts' twice"),
        (
            client.post("/v1/predict", content=b'{"k": 1, "k": 2}', headers={"Content-Type": "Application/JSON"}),
            400,
            "twice",
        ),
        (client.post("/v1/predict", content=b"{}\n{}", headers={"Content-Type": "application/jsonl"}), 415, "jsonl"),
        (raw(b'{"texts": ["a"], "threshold": NaN}'), 422, "threshold"),
        (raw(b'{"texts": ["a"], "threshold": 1e999}'), 422, "threshold"),
        (raw(b'{"texts": ["\xff"]}'), 400, "byte 13 of it is not utf-8"),
        (client.post("/v1/predict?k=3", json={"texts": ["a"]}), 422, "no parameter 'k' here; the address takes none"),
        (client.get("/v1/labels?query=oak"), 422, "no parameter 'query' here; the address takes q and limit"),
        (client.get("/v1/labels?q=oak&q=fern"), 400, "'q' is given twice"),
        (client.delete("/v1/labels?ids=L1", headers=AUTH), 403, "--allow-edit"),
        (client.post("/projects/toy/suggest", content=b"text=a&text=b", headers=FORM), 400, "'text' is given twice"),
        (
            client.post("/projects/toy/suggest", content=b"&".join([b"labels=L1"] * 1001), headers=FORM),
            400,
            "1000 fields",
        ),
        (
            client.post("/projects/toy/suggest-batch?limit=1&limit=2", json={"documents": [{"text": "a"}]}),
            400,
            "'limit'",
        ),
        (client.get("/v1/predict"), 405, "does not take GET"),
        (client.put("/v1/labels"), 405, "does not take PUT"),
        (client.get("/nothing/here"), 404, "nothing at '/nothing/here'"),
        (client.get("/v1/labels?limit=x"), 422, "limit"),
        (client.get("/projects/other"), 404, "the only one is 'toy'"),
        (client.post("/projects/toy/suggest", data={"limit": "1"}), 422, "text is missing"),
        (client.post("/projects/toy/suggest", data={"text": "a", "limit": "1.5"}), 422, "whole number"),
        (client.post("/projects/toy/suggest", data={"text": "a", "threshold": "nan"}), 422, "threshold"),
        (client.post("/projects/toy/suggest", json={"text": "a"}), 415, "x-www-form-urlencoded"),
        (client.post("/projects/toy/suggest", content=b"text=\xff", headers=FORM), 400, "UTF-8"),
        (client.post("/projects/toy/suggest", content=b"text=%ff%fe", headers=FORM), 400, "UTF-8"),
    ):
        assert answer.status_code == status, (answer.request.url, answer.text)
        assert part in message(answer)
    for path, methods in (
        ("/v1/labels", "DELETE, GET, HEAD, PATCH, POST"), ("/v1/predict", "POST"), ("/v1/documents", "DELETE, POST"),
        ("/v1/model", "GET, HEAD"), ("/", "GET, HEAD, POST"), ("/projects", "GET, HEAD"),
        ("/projects/toy/suggest", "POST"), ("/v1/projects/toy/suggest-batch", "POST"),
    ):  # fmt: skip
        answer = client.put(path)
        assert answer.status_code == 405 and answer.headers["Allow"] == methods, path


def test_head_is_get_without_a_body(client: TestClient) -> None:
    for path in ("/", "/healthz", "/readyz", "/v1/model"):
        asked, head = client.get(path), client.head(path)
        assert head.status_code == 200 and head.content == b"" and asked.content
        assert head.headers["content-type"] == asked.headers["content-type"]
    assert client.head("/v1/predict").status_code == 405


def test_slashes_too_many_do_not_matter(client: TestClient) -> None:
    for path in ("/v1/model/", "/v1//model", "//v1/model//"):
        assert client.get(f"http://testserver{path}").json() == client.get("/v1/model").json()
    assert client.post("/v1/predict/", json={"texts": ["a"]}).status_code == 200
    assert client.put("/v1/model/").headers["Allow"] == "GET, HEAD"


def test_few_labels_a_text_are_the_default_where_no_more_are_allowed(saved: Path) -> None:
    with served(saved, max_k=3) as client:
        assert len(client.post("/v1/predict", json={"texts": ["a"]}).json()["predictions"][0]["labels"]) == 3
        assert "k may be 3 at most, got 5" in message(client.post("/v1/predict", json={"texts": ["a"], "k": 5}))
        assert len(message(client.post("/v1/predict", json={"texts": ["a"], "k": int("9" * 2000)}))) < 200
        page = client.get("/").text
        (field,) = re.findall(r'<input id="k"[^>]*>', page)
        assert 'value="3"' in field and 'max="3"' in field


FORM = {"Content-Type": "application/x-www-form-urlencoded"}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["texts", "k", "threshold", "why", "reasons", "weight", "documents", "labels", "ids", "id", "text", "replace"]
bodies = st.dictionaries(st.sampled_from(FIELDS), anything, max_size=5) | anything
ROUTES = [
    ("POST", "/v1/predict"), ("POST", "/v1/documents"), ("DELETE", "/v1/documents"), ("POST", "/v1/labels"),
    ("PATCH", "/v1/labels"), ("DELETE", "/v1/labels"), ("POST", "/projects/toy/suggest-batch"), ("POST", "/"),
    ("POST", "/projects/toy/suggest"),
]  # fmt: skip
relaxed = settings(
    max_examples=int(os.environ.get("LABELSPACE_EXAMPLES", "50")), deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def never_ours(answer: Any) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and "html" not in answer.headers["content-type"]:
        message(answer)


def test_malformed_requests_are_never_our_fault(editable: tuple[TestClient, Path]) -> None:
    client, _ = editable

    @relaxed
    @given(st.sampled_from(ROUTES), bodies)
    def with_json(route: tuple[str, str], body: Any) -> None:
        content = json.dumps(body).encode()
        never_ours(client.request(*route, content=content, headers={**AUTH, "Content-Type": "application/json"}))

    @relaxed
    @given(st.sampled_from(ROUTES), st.binary(max_size=60), st.sampled_from(["application/json", FORM["Content-Type"]]))
    def with_bytes(route: tuple[str, str], content: bytes, kind: str) -> None:
        never_ours(client.request(*route, content=content, headers={**AUTH, "Content-Type": kind}))

    @relaxed
    @given(
        st.sampled_from(["/", "/projects/toy/suggest"]),
        st.dictionaries(st.sampled_from(["text", "k", "limit", "threshold", "weight", "x"]), st.text(max_size=9)),
    )
    def with_forms(path: str, fields: dict[str, str]) -> None:
        never_ours(client.post(path, content=urlencode(fields).encode(), headers=FORM))

    @relaxed
    @given(st.sampled_from(["/v1/labels?q=", "/v1/labels?limit=", "/projects/", "/", "/v1/"]), st.binary(max_size=20))
    def with_addresses(path: str, end: bytes) -> None:
        never_ours(client.get(path + quote(end)))

    with_json()
    with_bytes()
    with_forms()
    with_addresses()


def test_a_thousand_requests_that_break_the_schema_are_never_our_fault(editable: tuple[TestClient, Path]) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.generation import GenerationMode

    client, _ = editable
    answered: list[int] = []

    def send(case: Any) -> None:
        asked = case.as_transport_kwargs(base_url="http://testserver")
        body = {name: asked[name] for name in ("json", "data", "files") if asked.get(name) is not None}
        if isinstance(body.get("data"), str | bytes):
            body["content"] = body.pop("data")
        kind = {name: value for name, value in asked["headers"].items() if name.lower() == "content-type"}
        try:
            request = client.build_request(
                asked["method"], asked["url"], params=asked.get("params"), headers={**AUTH, **kind}, **body
            )
        except (TypeError, ValueError, UnicodeError):
            return  # not even a request: the client cannot spell it
        answer = client.send(request)
        never_ours(answer)
        answered.append(answer.status_code)

    for operation in schemathesis.openapi.from_dict(client.get("/openapi.json").json()).get_all_operations():
        for mode in (GenerationMode.NEGATIVE, GenerationMode.POSITIVE):
            strategy = operation.ok().as_strategy(generation_mode=mode)
            with contextlib.suppress(Unsatisfiable):  # without parameters nothing can be wrong
                count = 112 if mode is GenerationMode.NEGATIVE else 10
                often = settings(relaxed, max_examples=count, suppress_health_check=list(HealthCheck))
                often(given(strategy)(send))()
    assert sum(status >= 400 for status in answered) >= 1000


# The worker


class Slow:
    """A model that waits to be let on, and counts how it is called."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.gate = threading.Semaphore(0)
        self.calibration = None
        self.saved = 0

    def label_numbers(self, labels: tuple[str, ...]) -> list[int]:
        return [int(label) for label in labels]

    def predict(self, texts: list[str], k: int, labels: Any, *, probabilities: bool, why: bool) -> ls.Predictions:
        self.calls.append(("predict", list(texts), k, why) if labels is None else ("labels", labels, list(texts)))
        assert self.gate.acquire(timeout=60)
        if "bad" in texts:
            raise ls.DataError("bad")
        ranked = np.tile(np.arange(k), (len(texts), 1))
        return ls.Predictions(ranked, -ranked.astype(np.float32), [str(i) for i in range(k)], ["t"] * k)

    def with_weight(self, weight: float) -> Any:
        self.calls.append(("weight", weight))
        return self

    def save(self) -> None:
        self.saved += 1


@pytest.fixture
def slow() -> Iterator[tuple[Slow, Worker]]:
    model = Slow()
    worker = Worker(lambda: model, batch=4, queue=8, opened=lambda model: model.saved)  # type: ignore[arg-type, return-value, attr-defined]
    worker.start()
    wait_for(lambda: worker.ready)
    yield model, worker
    for _ in range(100):
        model.gate.release()
    worker.stop()


def test_what_waits_is_predicted_together(slow: tuple[Slow, Worker]) -> None:
    model, worker = slow
    first = worker.ask(Question(["a"], 2))
    wait_for(lambda: model.calls)  # an idle worker begins at once
    others = [worker.ask(Question([f"b{i}"], 1 + i)) for i in range(3)]
    wide = worker.ask(Question(["c", "d"], 2))
    change = worker.change(lambda model: model.calls.append("change") or ["x"])
    last = worker.ask(Question(["e"], 1))
    for _ in range(4):
        model.gate.release()
    assert [len(f.result(60).rows) for f in (first, *others, wide, last)] == [1, 1, 1, 1, 2, 1]
    assert model.calls == [
        ("predict", ["a"], 2, False),
        ("predict", ["b0", "b1", "b2"], 3, False),
        ("predict", ["c", "d"], 2, False),
        "change",
        ("predict", ["e"], 1, False),
    ]
    assert others[1].result().rows == range(1, 2) and others[1].result().k == 2
    assert change.result() == (["x"], 1) and wide.result().state == 0 and last.result().state == 1


def test_questions_of_other_kinds_are_predicted_apart_and_bad_ones_alone(slow: tuple[Slow, Worker]) -> None:
    model, worker = slow
    worker.ask(Question(["a"], 2))
    wait_for(lambda: model.calls)
    asked = [Question(["b"], 1), Question(["bad"], 1), Question(["c"], 1, True), Question(["d"], 1, weight=0.5)]
    asked += [Question([text], 1, labels=("2", "0")) for text in "ef"] + [Question(["g"], 1, labels=("x",))]
    found = [worker.ask(question) for question in asked]
    for _ in range(9):
        model.gate.release()
    found[0].result(60)
    with pytest.raises(ls.DataError):
        found[1].result(60)
    found[2].result(60), found[3].result(60), found[4].result(60), found[5].result(60)
    with pytest.raises(ValueError, match="x"):
        found[6].result(60)
    assert ("labels", [2, 0], ["e", "f"]) in model.calls
    assert ("weight", 0.5) in model.calls and ("predict", ["c"], 1, True) in model.calls


def test_a_full_queue_refuses_and_those_who_left_are_passed_over(slow: tuple[Slow, Worker]) -> None:
    model, worker = slow
    first = worker.ask(Question(["a"], 1))
    wait_for(lambda: model.calls)
    large = worker.ask(Question(["b"] * 20, 1))  # alone in the line it may be larger
    with pytest.raises(BusyError) as caught:
        worker.ask(Question(["c"], 1))
    assert caught.value.seconds >= 1 and worker.waiting == 20
    large.cancel()
    model.gate.release()
    first.result(60)
    wait_for(lambda: worker.waiting == 0)
    model.gate.release()
    worker.ask(Question(["d"], 1)).result(60)
    assert [call[1] for call in model.calls] == [["a"], ["d"]]


def test_stopping_finishes_what_was_taken(slow: tuple[Slow, Worker]) -> None:
    model, worker = slow
    found = [worker.ask(Question([str(i)], 1)) for i in range(5)]
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    wait_for(lambda: not worker.ready)
    with pytest.raises(NotReadyError):
        worker.ask(Question(["late"], 1))
    for _ in range(5):
        model.gate.release()
    stopping.join(60)
    assert all(f.done() for f in found)


def test_a_change_that_cannot_be_saved_is_taken_back(slow: tuple[Slow, Worker]) -> None:
    model, worker = slow

    def broken() -> None:
        raise OSError(28, "No space left on device")

    model.save = broken  # type: ignore[method-assign]
    with pytest.raises(UnsavedError, match="No space left"):
        worker.change(lambda model: ["x"]).result(60)
    told: list[BaseException] = []
    worker.failed = told.append
    worker.opening = lambda: (_ for _ in ()).throw(ls.ModelError("gone"))  # type: ignore[assignment]
    with pytest.raises(UnsavedError):
        worker.change(lambda model: ["x"]).result(60)
    assert not worker.ready and isinstance(worker.error, ls.ModelError)
    wait_for(lambda: told == [worker.error])  # so that the command ends, and what watches it begins anew


def test_busy_and_loading_are_told_to_clients(saved: Path) -> None:
    model, gate = Slow(), threading.Event()
    told = {"name": "toy", "revision": 1, "voting": {"scoring": "similarity", "weight": 0.2}, "calibrated": False}

    def opening() -> Any:
        gate.wait(60)
        return model

    app = make_app(opening, Settings(name="toy", queue=1))
    app.state.service.worker.opened = lambda model: told
    with TestClient(app) as client, ThreadPoolExecutor(3) as pool:
        assert client.get("/healthz").json() == {"status": "alive"}
        for answer in (client.get("/readyz"), client.post("/v1/predict", json={"texts": ["a"]})):
            assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
            assert "being opened" in message(answer)
        page = client.get("/")
        assert page.status_code == 503 and "being opened" in page.text
        gate.set()
        wait_for(lambda: client.get("/readyz").status_code == 200)
        taken = pool.submit(client.post, "/v1/predict", json={"texts": ["a"], "k": 1})
        wait_for(lambda: model.calls)
        waiting = pool.submit(client.post, "/v1/predict", json={"texts": ["b"], "k": 1})
        wait_for(lambda: app.state.service.worker.waiting == 1)
        answer = client.post("/v1/predict", json={"texts": ["c"]})
        assert (
            answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1 and "wait already" in message(answer)
        )
        model.gate.release(2)
        assert taken.result(60).status_code == waiting.result(60).status_code == 200


def test_a_model_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    app = make_app(lambda: ls.Model.load(tmp_path, "cpu"), Settings(name="toy"), failures.append)
    with TestClient(app) as client:
        wait_for(lambda: failures)
        answer = client.get("/readyz")
        assert answer.status_code == 503 and isinstance(failures[0], ls.ModelError)


# Changes


def test_changes_need_leave_and_the_token(client: TestClient, editable: tuple[TestClient, Path]) -> None:
    document = {"documents": [{"text": "x", "labels": ["L1"]}]}
    answer = client.post("/v1/documents", json=document, headers=AUTH)
    assert answer.status_code == 403 and "--allow-edit" in message(answer)
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": "é"}):
        for verb, path in (("POST", "documents"), ("DELETE", "documents"), ("PATCH", "labels"), ("DELETE", "labels")):
            body = {"POST": document, "PATCH": {"labels": [{"id": "L1", "text": "x"}]}, "DELETE": {"ids": ["L1"]}}[verb]
            coded = {name: value.encode() for name, value in header.items()}
            answer = editable[0].request(verb, f"/v1/{path}", json=body, headers=coded)
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
            assert "Authorization: Bearer" in message(answer)
    assert len(ls.Model.load(editable[1], "cpu").history) == 1


def test_changes_count_at_once_and_are_on_disk(editable: tuple[TestClient, Path]) -> None:
    client, folder = editable

    def send(verb: str, path: str, body: Any = None) -> Any:
        answer = client.request(verb, f"/v1/{path}", json=body, headers=AUTH)
        assert answer.status_code == (201 if verb == "POST" else 200), answer.text
        return answer.json()

    found = send("POST", "labels", {"labels": [{"text": "blue stone", "id": "L9"}]})
    assert found["ids"] == ["L9"] and found["labels"] == 6 and found["model"]["revision"] == 2
    assert client.get("/v1/labels?q=blue").json() == {"labels": [{"id": "L9", "text": "blue stone"}]}
    found = send("POST", "documents", {"documents": [{"text": "a blue stone on moss", "labels": ["blue stone", "L3"]}]})
    assert found == {"ids": ["added-4"], "labels": 6, "documents": 4, "model": {"name": "toy", "revision": 3}}
    told = client.post("/v1/predict", json={"texts": ["a blue stone on moss"], "why": True, "k": 6}).json()
    assert told["model"]["revision"] == 3
    assert "added-4" in [reason["id"] for label in told["predictions"][0]["labels"] for reason in label["why"]]
    again = ls.Model.load(folder, "cpu")
    assert again.memory.n_documents == 4 and "L9" in list(again.labels.ids)
    send("PATCH", "labels", {"labels": [{"id": "L9", "text": "green stone"}]})
    assert client.get("/v1/labels?q=green").json()["labels"][0]["id"] == "L9"
    assert send("DELETE", "documents", {"ids": ["added-4"]})["documents"] == 3
    assert send("DELETE", "labels?id=L9&id=" + quote(IDS[0], safe=""))["labels"] == 4
    again = ls.Model.load(folder, "cpu")
    assert list(again.labels.ids) == ["L1", "L2", "L3", "L4"] and again.memory.n_documents == 3
    replaced = {"documents": [{"text": "dry moss", "labels": ["L3"], "id": "added-1"}], "replace": True}
    assert send("POST", "documents", replaced)["documents"] == 3
    for verb, path, body, part in (
        ("POST", "documents", {"documents": [{"text": "x", "labels": ["L77"]}]}, "no label 'L77'"),
        ("POST", "documents", {"documents": [{"text": "x", "labels": ["L1"], "id": "added-1"}]}, "already"),
        ("POST", "documents", {"documents": [{"text": "x", "labels": []}]}, "documents[0].labels"),
        ("POST", "documents", {"documents": [{"text": " ", "labels": ["L1"]}]}, "documents[0].text"),
        ("POST", "labels", {"labels": [{"text": "a", "id": "b"}, {"text": "c"}]}, "to all or to none"),
        ("DELETE", "labels", {"ids": ["L77"]}, "not in the model"),
        ("DELETE", "labels", None, "name what to remove"),
        ("PATCH", "labels", {"labels": [{"id": "L1", "text": "a"}, {"id": "L1", "text": "b"}]}, "twice"),
    ):
        answer = client.request(verb, f"/v1/{path}", json=body, headers=AUTH)
        assert answer.status_code == 422 and part in message(answer)
    assert len(ls.Model.load(folder, "cpu").history) == len(again.history) + 1


def test_a_change_made_elsewhere_is_not_overwritten(editable: tuple[TestClient, Path]) -> None:
    client, folder = editable
    other = ls.Model.load(folder, "cpu")
    other.add_labels(["from elsewhere"], ["E"])
    other.save()
    body = {"labels": [{"text": "from here", "id": "H"}]}
    answer = client.post("/v1/labels", json=body, headers=AUTH)
    assert answer.status_code == 409 and "taken back" in message(answer)
    assert client.get("/v1/labels?q=from").json()["labels"] == [{"id": "E", "text": "from elsewhere"}]
    assert client.post("/v1/labels", json=body, headers=AUTH).status_code == 201
    assert {"E", "H"} <= set(ls.Model.load(folder, "cpu").labels.ids)


def test_a_prediction_never_sees_half_a_change(editable: tuple[TestClient, Path]) -> None:
    client, _ = editable
    done = threading.Event()
    seen: dict[int, list[dict[str, float]]] = {}

    def ask() -> None:
        while not done.is_set():
            told = client.post("/v1/predict", json={"texts": ["twin stones"], "k": 50}).json()
            found = {label["id"]: label["score"] for label in told["predictions"][0]["labels"]}
            seen.setdefault(told["model"]["revision"], []).append(found)

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        for i in range(6):
            pair = [{"text": f"twin stone {i} {j}", "id": f"T{i}{j}"} for j in range(2)]
            assert client.post("/v1/labels", json={"labels": pair}, headers=AUTH).status_code == 201
        done.set()
        for one in asking:
            one.result(60)
    for revision, answers in seen.items():
        assert all(found == pytest.approx(answers[0], rel=1e-3) for found in answers)  # batches round differently
        assert len(answers[0]) == len(IDS) + 2 * (revision - 1)
        assert all((f"T{i}0" in answers[0]) == (f"T{i}1" in answers[0]) for i in range(6))
    assert len(seen) > 1


# Labels


def test_labels_are_found_as_a_plain_search_finds_them(client: TestClient) -> None:
    rng = np.random.default_rng(0)
    words = ["Oak", "oak tree", "old", "red", "OAKS", "soak", "é", "ß", "I"]
    texts = [" ".join(rng.choice(words, int(rng.integers(1, 4)))) for _ in range(60)]
    search = LabelSearch(ls.Labels([f"id{i}" for i in range(60)], texts))
    plain = [" ".join(text.casefold().split()) for text in texts]
    for query in ["oak", "OAK", "ak", "red oak", "ss", "É", "nothing", "id7", " old  red ", "i"]:
        wanted = " ".join(query.casefold().split())
        order = [i for i in range(60) if f"id{i}" == query]
        for test in (
            lambda text, w=wanted: text == w,
            lambda text, w=wanted: text.startswith(w),
            lambda text, w=wanted: f" {w}" in text,
            lambda text, w=wanted: w in text,
        ):
            order += [i for i, text in enumerate(plain) if test(text) and i not in order]
        assert search(query, 60) == order
        assert search(query, 3) == order[:3]
    assert search("", 2) == [0, 1]
    found = client.get("/v1/labels", params={"q": "OAK", "limit": 9}).json()["labels"]
    assert [label["text"] for label in found] == ["Oak red", "red oak"]
    assert client.get("/v1/labels", params={"q": IDS[0]}).json()["labels"][0]["text"] == "red oak"


# Annif


def test_annif_http_backend_gets_what_it_reads(client: TestClient, saved: Path) -> None:
    """What Annif's backend `http` sends by `requests`, byte for byte, and what it looks at (annif/backend/http.py)."""
    model = ls.Model.load(saved, "cpu")
    headers = {
        "User-Agent": "Annif/1.3.1",
        "Accept-Encoding": "gzip, deflate",
        "Accept": "*/*",
        "Connection": "keep-alive",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    text = "old red oaks & the moss, 100%\nsécond line"
    for endpoint in ("/projects/toy/suggest", "/v1/projects/toy/suggest"):
        info = client.get(endpoint.replace("/suggest", ""), headers=headers)  # for is_trained and modification_time
        assert info.status_code == 200 and info.json()["is_trained"] is True
        assert datetime.fromisoformat(info.json()["modification_time"]).tzinfo is not None
        recorded = b"text=old+red+oaks+%26+the+moss%2C+100%25%0As%C3%A9cond+line&project=toy"
        answer = client.post(endpoint, content=recorded, headers=headers)
        assert answer.status_code == 200
        pred = model.predict([text], 10, probabilities=True)
        read = [(hit["uri"], hit["score"]) for hit in answer.json()["results"] if hit["score"] > 0.0]
        wanted = [(name, pytest.approx(value, rel=1e-5)) for name, _, value in pred.named(0)]
        assert read == wanted and len(read) == len(IDS)
        assert set(answer.json()["results"][0]) == {"uri", "label", "notation", "score"}
        assert all(0 <= hit["score"] <= 1 for hit in answer.json()["results"])


def test_other_annif_routes(client: TestClient) -> None:
    (project,) = client.get("/projects").json()["projects"]
    assert project["project_id"] == "toy" and project["backend"]["backend_id"] == "labelspace"
    whole = client.post("/projects/toy/suggest", data={"text": "moss"}).json()["results"]
    least = (whole[1]["score"] + whole[2]["score"]) / 2
    cut = client.post("/projects/toy/suggest", data={"text": "moss", "limit": "3", "threshold": str(least)}).json()
    assert cut["results"] == whole[:2]
    assert client.post("/projects/toy/suggest", data={"text": "moss", "limit": "0"}).json() == {"results": []}
    body = {"documents": [{"text": "moss", "document_id": "b", "metadata": {"title": "x"}}, {"text": "a red oak"}]}
    batch = client.post("/projects/toy/suggest-batch?limit=2", json=body).json()
    assert [item["document_id"] for item in batch] == ["b", None]
    for one, other in zip(batch[0]["results"], whole[:2], strict=True):  # two texts at a time round differently
        assert one == {**other, "score": pytest.approx(other["score"], abs=VOTES)}
    assert client.post("/projects/toy/suggest-batch", json={"documents": []}).json() == []
    assert client.post("/projects/toy/suggest-batch", json={"documents": [{"text": "x"}] * 8}).status_code == 413


# What it tells of itself


def test_openapi_is_complete_and_its_examples_work(editable: tuple[TestClient, Path]) -> None:
    client, _ = editable
    described = client.get("/openapi.json").json()
    client.post("/v1/labels", json={"labels": [{"text": "railways"}, {"text": "hiking"}]}, headers=AUTH)
    tried = 0
    for path, verbs in described["paths"].items():
        for verb, told in verbs.items():
            assert told["summary"] and told["description"] and told["tags"], path
            for code, answer in told["responses"].items():
                (kind,) = answer["content"].values()
                assert answer["description"] and kind["schema"], (path, code)
                name = kind["schema"].get("$ref", "").split("/")[-1]
                assert (
                    "example" in kind
                    or name not in described["components"]["schemas"]
                    or (described["components"]["schemas"][name].get("examples"))
                ), (path, code)
            for parameter in told.get("parameters", []):
                assert parameter["description"], (path, parameter["name"])
                assert "example" in parameter or "examples" in parameter["schema"], (path, parameter["name"])
            assert {"429", "503"} & set(told["responses"]) <= {
                code for code, answer in told["responses"].items() if "Retry-After" in answer.get("headers", {})
            }
            content = (told.get("requestBody") or {}).get("content") or {}
            for kind, body in content.items():
                assert verb != "delete" or body["examples"]["ids"]["value"] == {"ids": ["added-11"]}
                schema = body["schema"]
                ref = next((part["$ref"] for part in schema.get("anyOf", [schema]) if "$ref" in part), None)
                shown = described["components"]["schemas"][ref.split("/")[-1]] if ref else schema
                example = shown["examples"][0] if "examples" in shown else shown["example"]
                place = path.replace("{project_id}", "toy")
                sent = {"data": example} if kind == FORM["Content-Type"] else {"json": example}
                if verb in ("post",):
                    answer = client.request(verb.upper(), place, headers=AUTH, **sent)
                    assert answer.status_code in (200, 201), (path, answer.text)
                    tried += 1
    assert tried >= 5
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    told = client.get("/v1/model").json()
    assert told["editable"] and told["calibrated"] and told["limits"]["texts"] == 256 and told["documents"] >= 3


def test_the_page_works_without_scripts_and_trusts_nobody(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "<h1>toy</h1>" in page.text and 'id="token"' not in page.text
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "sha256-" in policy
    assert not [part for part in ("src=", "@import", "url(", 'style="', "onclick") if part in page.text]
    evil = "<script>alert(1)</script> red oak \"'&"
    page = client.post("/", data={"text": evil, "k": "3", "threshold": "0", "weight": "0.90"})
    assert page.status_code == 200
    assert "<script>alert" not in page.text and "&lt;script&gt;alert(1)&lt;/script&gt; red oak" in page.text
    assert page.text.count("<details>") == 3 and page.text.count("<rect") > 6 and "for this weight" in page.text
    assert client.post("/", data={"text": evil, "threshold": "1"}).text.count("<details>") == 0
    for fields, status, said in (
        ({"text": " "}, 422, "give a text"),
        ({"text": "x", "k": "many"}, 422, "k must be a whole number"),
        ({"text": "x", "weight": "2"}, 422, "weight must be"),
    ):
        page = client.post("/", data=fields)
        assert page.status_code == status and said in page.text


# Bodies that do not come, and such as are too large


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelspace.serving.http.BODY_SECONDS", 0.05)
    monkeypatch.setattr("labelspace.serving.http.DRAIN_SECONDS", 0.05)
    answers = []
    for length, first in ((b"100", b"a"), (b"9999", b"a"), (b"5", b"a" * 50)):
        sent: list[Any] = []
        parts = iter([{"type": "http.request", "body": first, "more_body": True}])

        async def receive(parts: Any = parts) -> Any:
            for part in parts:
                return part
            await asyncio.Event().wait()

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        async def never(scope: Any, receive: Any, send: Any) -> None:
            raise AssertionError

        scope = {"type": "http", "method": "POST", "headers": [(b"content-length", length)]}
        limited = BodyLimit(never, 200 if length != b"5" else 20)(scope, receive, send)  # type: ignore[arg-type]
        asyncio.run(asyncio.wait_for(limited, 60))  # a guard: what is waited for never comes
        answers.append((sent[0]["status"], json.loads(sent[1]["body"])["error"]["message"]))
    assert [status for status, _ in answers] == [408, 413, 413]
    assert "no more of the body came for 0.05 seconds" in answers[0][1]


def test_a_body_too_large_that_is_announced_is_not_asked_for() -> None:
    sent: list[Any] = []

    async def never(*_: Any) -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-length", b"21"), (b"expect", b"100-Continue")]
    scope = {"type": "http", "method": "POST", "headers": headers}
    asyncio.run(BodyLimit(never, 20)(scope, never, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 413 and "this one has 21" in json.loads(sent[1]["body"])["error"]["message"]


# The command


def test_the_command_serves_and_finishes_what_it_took(saved: Path, forked: Runner, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "toy model")
    command = [forked.tool("labelspace"), "serve", str(tmp_path / "toy model"), "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--allow-edit"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=forked.environment
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        started = "".join(iter(process.stdout.readline, "}\n")) + "}"
        told = json.loads(started)
        assert told["name"] == "toy-model" and told["url"].startswith("http://127.0.0.1:")
        said = process.stderr.readline()
        assert said.startswith("the token for changes, not shown again: ")
        port = int(told["url"].rstrip("/").split(":")[-1])

        def exchange(head: str, body: bytes = b"", pause: Any = None) -> str:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
                fields = (
                    f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
                )
                line.sendall(f"{head} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body[:5])
                if pause is not None:
                    pause()
                line.sendall(body[5:])
                return "".join(iter(lambda: line.recv(65536).decode(), ""))

        wait_for(lambda: " 200 " in exchange("GET /readyz").splitlines()[0])
        for line in (b"garbage\r\n\r\n", b"FOO / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: abc\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
                wire.sendall(line)
                told = b"".join(iter(lambda wire=wire: wire.recv(65536), b"")).decode()  # type: ignore[misc]
            assert told.startswith("HTTP/1.1 4") and json.loads(told.split("\r\n\r\n")[1])["error"]["message"], told
        upgrade = "GET /v1/model HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
            wire.sendall(upgrade.encode())
            assert wire.recv(12) == b"HTTP/1.1 200"

        def end() -> None:
            time.sleep(0.3)  # so that the head of the request has been read
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)

        answer = exchange("POST /v1/predict", b'{"texts": ["a red oak"], "k": 1}', end)
        assert " 200 " in answer.splitlines()[0] and '"predictions":[{"labels":[{"id":' in answer
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_command_refuses_in_one_sentence(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*tokens: str) -> tuple[int, str]:
        code = main(["serve", *tokens])
        return code, capsys.readouterr().err

    assert refused(str(tmp_path / "none")) == (
        1,
        f"labelspace: there is no model at {tmp_path / 'none'}: no such folder\n",
    )
    assert refused(str(saved), "--max-k", "0")[0] == 2
    assert refused(str(saved), "--port", "99999")[0] == 2
    assert refused(str(saved), "--name", "a b")[0] == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = refused(str(saved), "--port", str(taken.getsockname()[1]))
    assert (
        code == 1
        and "cannot listen at 127.0.0.1" in said
        and "another program listens there; choose another --p" in said
    )
    assert "no such address or name is known here" in refused(str(saved), "--host", "no such.invalid")[1]
    assert "does not have that address" in refused(str(saved), "--host", "192.0.2.1")[1]
    assert refused(str(saved), "--cors", "app.example.org")[0] == 2
    monkeypatch.setenv("LABELSPACE_TOKEN", "short")
    assert refused(str(saved), "--allow-edit")[0] == 2
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "fastapi" else found(name, *a))
    assert refused(str(saved)) == (
        1, "labelspace: labelspace serve needs the package fastapi; install it with: pip install 'labelspace[serve]'\n"
    )  # fmt: skip


def test_weights_share_the_keys(saved: Path) -> None:
    model = ls.Model.load(saved, "cpu")
    other = model.with_weight(0.9)
    assert other.memory.label_keys is model.memory.label_keys and other.calibration is None
    assert model.calibration is not None and model.memory.voting.weight != 0.9
    for wrong in (-0.1, 1.1, float("nan"), "x", True):
        with pytest.raises(ls.DataError, match="from 0 to 1"):
            model.with_weight(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "url", "reached"),
    [
        ("127.0.0.1", "http://127.0.0.1:{}/", ["127.0.0.1"]),
        ("localhost", "http://localhost:{}/", ["127.0.0.1"]),
        ("0.0.0.0", "http://127.0.0.1:{}/", ["127.0.0.1"]),
        ("", "http://127.0.0.1:{}/", ["127.0.0.1", "::1"]),
        ("::", "http://[::1]:{}/", ["::1", "127.0.0.1"]),
        ("::1", "http://[::1]:{}/", ["::1"]),
        ("[::1]", "http://[::1]:{}/", ["::1"]),
    ],
)
def test_addresses_listened_at_are_those_asked_for(host: str, url: str, reached: list[str]) -> None:
    if "::1" in reached:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    with _listening(host, 0) as listeners:
        port = listeners[0].getsockname()[1]
        assert _address(host, listeners[0]) == url.format(port)
        for address in reached:
            socket.create_connection((address, port), timeout=60).close()
        if "0.0.0.0" not in host and len(reached) == 1 and "::1" in reached:
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=60)
        with pytest.raises(ls.LabelspaceError, match="another program listens there"), _listening(host, port):
            pass
