"""Whole runs of training in scripts whose words hold marks or have no blanks between, in both forms of Unicode."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import labelspace as ls
from labelspace.cli.app import main
from labelspace.model import tuning

SCRIPTS = {
    "Hindi": {"साहित्य": "क़लम हिन्दी कविता उपन्यास", "खेती": "गेहूँ किसान सिंचाई मिट्टी", "संगीत": "राग तबला सितार गायकी"},
    "Bengali": {"কবিতা": "ছন্দ কবি শব্দগুলো পঙ্‌ক্তি", "নদী": "নৌকা জোয়ার ঢেউ মোহনা", "রান্না": "ভাত মাছের ঝোল ইলিশ"},
    "Tamil": {"இலக்கியம்": "தமிழ் கவிதை புலவர் நூல்", "கோவில்": "சிற்பம் கோபுரம் தேர் விழா", "உணவு": "மீன் சோறு தோசை இட்லி"},
    "Telugu": {"కవిత్వం": "తెలుగు పద్యం కవులు ఛందస్సు", "వ్యవసాయం": "వరి రైతులు భూమి నీరు", "సంగీతం": "రాగం వీణ తాళం గానం"},
    "Hebrew with points": {"תּוֹרָה": "סֵפֶר פָּסוּק רַבִּי מִצְוָה", "יַיִן": "כֶּרֶם עֵנָב אָדֹם בַּקְבּוּק", "יָם": "סִירָה גַּלִּים דָּגִים חוֹף"},
    "Vietnamese": {"lịch sử": "triều đại vua chiến", "ẩm thực": "nước mắm phở bún", "địa lý": "đồng bằng sông hồ"},
    "Thai": {"อาหาร": "ข้าวผัด ต้มยำกุ้ง น้ำปลา ส้มตำ", "ทะเล": "เรือใบ คลื่นลม ชายหาด ปลาวาฬ", "ดนตรี": "ระนาดเอก ขลุ่ยไม้ กลองยาว"},
    "Chinese": {"农业": "小麦 农民 灌溉 土壤", "音乐": "古琴 二胡 歌曲 节拍", "航海": "帆船 海浪 港口 灯塔"},
}  # fmt: skip
"""Labels and the words of their documents."""
UNSPACED = ("Thai", "Chinese")


def documents(script: str, form: str) -> list[dict[str, object]]:
    """Documents of three words each, all in a form of Unicode; without blanks where the script has none."""
    rng, rows = np.random.default_rng(0), []
    for i in range(90):
        label, words = list(SCRIPTS[script].items())[i % 3]
        drawn = [words.split()[n] for n in rng.choice(len(words.split()), 3, replace=False)]
        text = ("" if script in UNSPACED else " ").join(drawn)
        rows.append(
            {"text": unicodedata.normalize(form, f"{text} {i}"), "labels": [unicodedata.normalize(form, label)]}
        )
    return rows


@pytest.mark.parametrize("script", SCRIPTS)
def test_both_forms_train_the_same_model_of_whole_words(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "LEAST_GAIN", -np.inf)  # so that the classifier stays, although nothing is left to gain
    models = {}
    for form in ("NFC", "NFD"):
        source = tmp_path / f"{form}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in documents(script, form)))
        assert main([
            "train", str(source), "--recipe", "dexml", "--encoder", "static", "--epochs", "2", "--memory", "--linear",
            "--valid-fraction", "0.3", "--out", str(tmp_path / form), "--quiet",
        ]) == 0  # fmt: skip
        models[form] = ls.Model.load(tmp_path / form, "cpu")
    composed = models["NFC"]
    texts = [str(row["text"]) for row in documents(script, "NFC")]
    words = {word for text in texts for word in text.lower().split() if not word.isdecimal()}
    if script in UNSPACED:
        words = set("".join(words))
    for model in models.values():
        assert model.memory.linear is not None
        assert {term for term in model.memory.linear.terms if " " not in term and not term.isdecimal()} == words
    first = named(composed, texts)
    right = [row[0][0] == list(SCRIPTS[script])[i % 3] for i, row in enumerate(first)]
    assert np.mean(right) > 0.9
    for model in models.values():
        for form in ("NFC", "NFD"):
            assert named(model, [unicodedata.normalize(form, text) for text in texts]) == first


def named(model: ls.Model, texts: list[str]) -> list[list[tuple[str, float]]]:
    """The labels of each text, in one form, with their scores to the last bit."""
    found = model.predict(texts, k=3)
    return [
        [(unicodedata.normalize("NFC", label), score) for label, _, score in found.named(row)]
        for row in range(len(texts))
    ]
