"""What a browser receives tells the arms apart by nothing but the pixels."""

from __future__ import annotations

import time

import httpx
import numpy as np
from scipy.stats import norm
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from pathup.study.folder import StudyFolder
from tests.study.made import link_of, made_study
from tests.study.server import Server

READERS = tuple("abcdefgh")
LEARNT = 3
"""Readers whose arms the forest is told; it guesses those of the others."""

FALSE_ALARM = 0.001
"""How often the test fails though nothing leaks: its interval is this much short of all."""


def test_a_forest_given_all_but_the_pixels_cannot_tell_the_arms_apart(tmp_path):
    """Headers, names, lengths, order and seconds over loopback, of 8 readers who see 80 images each.

    The real images take 4 times as many bytes before they are made alike. Each reader has an order of their own, so
    if nothing leaks, an AUC on readers that were not learnt from is normal about 0.5 with the variance
    (m + n + 1) / (12 m n) of Mann and Whitney (1947).
    """
    study = made_study(tmp_path, per_class=20, repeats=0.0, practice=0, readers=READERS)
    server = Server(study.path)
    try:
        received = [rows_of_reader(study, server, reader) for reader in range(len(READERS))]
    finally:
        server.kill()
    arms = [np.array([study.images[index].synthetic for index in order]) for order in study.orders]
    truth = np.concatenate(arms[LEARNT:])
    told = auc_of_a_forest(
        np.concatenate(received[:LEARNT]), np.concatenate(arms[:LEARNT]), np.concatenate(received[LEARNT:]), truth
    )
    synthetic, real = int(truth.sum()), int((~truth).sum())
    half = norm.ppf(1 - FALSE_ALARM / 2) * np.sqrt((synthetic + real + 1) / (12 * synthetic * real))
    assert half < 0.1  # so an AUC of 0.6 would be seen as often as not
    assert abs(told - 0.5) <= half


def test_the_forest_sees_it_where_one_arm_takes_longer():
    """The measure itself: seconds one standard deviation apart, where the best AUC is Phi(1 / sqrt 2) = 0.76."""
    draw = np.random.default_rng(0)
    arms = draw.permutation(np.repeat([True, False], 320))
    rows = np.stack([draw.normal(size=640) + arms, draw.normal(size=640)], 1)
    assert auc_of_a_forest(rows[:240], arms[:240], rows[240:], arms[240:]) > 0.65


def auc_of_a_forest(learnt: np.ndarray, arms: np.ndarray, rows: np.ndarray, truth: np.ndarray) -> float:
    forest = RandomForestClassifier(300, min_samples_leaf=10, random_state=0).fit(learnt, arms)
    return float(roc_auc_score(truth, forest.predict_proba(rows)[:, 1]))


def rows_of_reader(study: StudyFolder, server: Server, reader: int) -> np.ndarray:
    """All that came with each image, as numbers, in the reader's order."""
    base, origin = f"{server.address}/r/{link_of(study, reader)}", {"origin": server.address}
    rows, constant = [], set()
    with httpx.Client() as client:
        assert client.post(f"{base}/consent", headers=origin).status_code == 303
        for place in range(len(study.images)):
            started = time.perf_counter()
            response = client.get(f"{base}/study/{place}/image.jpg")
            took = time.perf_counter() - started
            assert response.status_code == 200
            told = {name: value for name, value in response.headers.items() if name != "date"}
            constant.add((len(response.content), str(told), response.content.find(b"\xff\xda")))
            answer = {"round": "study", "place": place, "turn": place, "score": 5}
            started = time.perf_counter()
            kept = client.post(f"{base}/answer", json=answer, headers=origin)
            assert kept.status_code == 200
            rows.append([
                place, took, time.perf_counter() - started, len(response.content), len(str(response.headers)),
                len(kept.content), *np.frombuffer(response.content[:200], np.uint8),
            ])  # fmt: skip
    assert len(constant) == 1  # lengths, headers and where the pixels begin are the same for all
    return np.array(rows)
