"""Accuracies of the papers' tables, in percent (mean, standard deviation): numbers as published, none measured here."""

from __future__ import annotations

from collections.abc import Mapping

COLUMNS = ("RoboRefIt", "Where2Place", "Where2Place (hard)")
TRACE, ROBOPOINT = "TRACE, arXiv 2511.01999", "RoboPoint, arXiv 2406.10721"
Row = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]

# The columns are those above.
TABLE: Mapping[str, tuple[str, Row]] = {
    "RoboPoint(FFT)+TRACE": (TRACE, ((42.9, 0.8), (48.1, 0.1), (55.0, 3.5))),
    "RoboPoint(FFT)": (TRACE, ((41.7, 0.6), (43.9, 0.6), (46.9, 4.2))),
    "RoboPoint(LoRA)+TRACE": (TRACE, ((48.1, 2.8), (43.7, 4.1), (41.2, 7.3))),
    "RoboPoint(LoRA)": (TRACE, ((40.6, 3.0), (36.1, 1.3), (30.7, 0.2))),
    "SpaceLLaVA": (TRACE, ((20.0, 0.5), (15.0, 1.6), (13.6, 2.1))),
    "GPT-4o": (TRACE, ((6.5, 0.8), (18.7, 2.6), (17.8, 4.8))),
    "Gemini": (TRACE, ((5.2, 0.1), (7.8, 0.2), (6.6, 0.2))),
    "RoboPoint 13B": (ROBOPOINT, ((49.82, 0.52), (46.77, 0.45), (44.48, 1.35))),
}


def columns_of(name: str) -> dict[str, tuple[str, str]]:
    """Which columns a benchmark of this name or folder fills, and with which group of its questions."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    if "roborefit" in plain:
        return {"RoboRefIt": ("all", "all")}
    if "where2place" in plain:
        return {"Where2Place": ("all", "all"), "Where2Place (hard)": ("category", "unseen")}
    return {}
