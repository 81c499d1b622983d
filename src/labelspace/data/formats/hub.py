"""Names of labels that stand beside the files of a data set of the Hugging Face Hub, in its card or its infos.

The schema of a Parquet file holds them only where the library ``datasets`` wrote it. ``README.md`` has them in its
head, as YAML, and older data sets have them in ``dataset_infos.json``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import DataError
from .text import is_file

logger = logging.getLogger("labelspace.data")

CARD, INFOS = "README.md", "dataset_infos.json"


def names_beside(path: Path, column: str) -> tuple[list[str], Path] | None:
    """Names of the label numbers in a column of a data file, and the file that has them, or None.

    Looked at are the folder of the file and the one above, which has files in ``data`` or a folder for each
    configuration. Of several configurations that differ, the one counts that the folder is named after.
    """
    for folder in (path.parent, path.parent.parent):
        for source, features in ((folder / INFOS, _of_infos), (folder / CARD, _of_card)):
            if not is_file(source):
                continue
            try:
                found = {
                    config: names for config, feature in features(source, column) if (names := class_names(feature))
                }
            except ValueError:
                raise DataError(f"the names of {column!r} are no list of names", source) from None
            if path.parent.name in found:
                return found[path.parent.name], source
            if found and all(names == next(iter(found.values())) for names in found.values()):
                return next(iter(found.values())), source
            if found:
                logger.warning("%s names the labels of %s in %d ways; none is taken", source, path, len(found))
    return None


def class_names(feature: Any) -> list[str] | None:
    """The names of a feature that is a ``ClassLabel``, or a list of such, in any of the spellings of ``datasets``."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            break
        elif isinstance(feature, dict) and "class_label" in feature:
            feature = feature["class_label"]
            break
        elif isinstance(feature, dict):
            feature = next((feature[key] for key in ("feature", "sequence", "list", "dtype") if key in feature), None)
        else:
            return None
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict) and all(str(key).isdecimal() for key in names):
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError("no list of names")
    return names


def _of_infos(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    """Configuration and feature of a column."""
    try:
        infos = json.loads(path.read_text(encoding="utf-8"))
        for config, info in infos.items():
            yield config, (info.get("features") or {}).get(column)
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"the names of {column!r} cannot be read here ({error}); mend or remove the file", path
        ) from None


def _of_card(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    import yaml

    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n") or "class_label" not in text:
        return
    try:
        # The base loader keeps every name a text: "no" is not False there.
        head = yaml.load(text.split("\n---", 1)[0], Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
        infos = head.get("dataset_info") or []
        for info in infos if isinstance(infos, list) else [infos]:
            features = {feature["name"]: feature for feature in info["features"]}
            yield info.get("config_name", "default"), features.get(column)
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"the names of {column!r} cannot be read from the head of this card ({reason}); mend or remove it", path
        ) from None
