"""The report of simulated readers, and what is exported."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pathup.errors import PathUpError
from pathup.study.answers import Answer, Answers
from pathup.study.folder import StudyFolder
from pathup.study.readings import csv_text, scores_of
from pathup.study.report import write_export, write_report
from tests.study.made import made_study


def read(study: StudyFolder, skill: float, *, seed: int = 0, places: int | None = None) -> None:
    """Every reader scores every image, real ones `skill` points higher on the average, and changes the first answer."""
    draw = np.random.default_rng(seed)
    answers = Answers(study.answers_file)
    for reader in range(len(study.readers)):
        answers.consent(reader).result()
        turn = 0
        for place in range(study.count("study") if places is None else places):
            image = study.images[study.orders[reader][place]]
            score = round(float(np.clip(draw.normal(5.5 if image.synthetic else 5.5 + skill, 2), 1, 10)))
            told = Answer(reader, "study", place, turn, score, guess="A", comment="=1+1" if place == 0 else None)
            answers.give(told).result()
            turn += 1
        answers.give(Answer(reader, "study", 0, turn, 10)).result()
    answers.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> StudyFolder:
    made = made_study(tmp_path_factory.mktemp("report"), per_class=20, repeats=0.1, readers=("anna", "ben", "carla"))
    read(made, 2.0)
    return made


def rows_of(study: StudyFolder) -> list[dict]:
    answers = Answers(study.answers_file)
    rows = answers.rows()
    answers.close()
    return rows


def test_scores_are_the_newest_of_every_reader_and_image(study):
    rows = rows_of(study)
    scores = scores_of(study, rows)
    assert scores.values.shape == (3, 80) and not np.isnan(scores.values).any()
    assert (~np.isnan(scores.repeats)).sum(1).tolist() == [8, 8, 8]
    order = list(zip(scores.labels, scores.synthetic, strict=True))
    assert order == sorted(order)
    key = {image.name: image for image in study.images}
    for reader in range(3):
        newest = {row["place"]: row["score"] for row in rows if row["reader"] == reader}
        for place, index in enumerate(study.orders[reader]):
            column = scores.images.index(study.images[index].name)
            assert key[scores.images[column]].synthetic == scores.synthetic[column]
            table = scores.values if study.orders[reader].index(index) == place else scores.repeats
            assert table[reader, column] == newest[place]


def test_the_report_holds_what_the_simulated_readers_did(study, tmp_path):
    paths = write_report(study, tmp_path / "report")
    names = {path.name for path in paths}
    assert names == {"report.html", "report.json", "table5.csv", "scores.csv", "scores.png", "roc.png"}
    found = json.loads((tmp_path / "report/report.json").read_text())
    scores = scores_of(study, rows_of(study))
    for area, own in zip(found["aucs"], scores.values, strict=True):
        assert area == pytest.approx(roc_auc_score(~scores.synthetic, own))
    # a difference of 2 points of deviation 2 is an AUC of Phi(2 / (2 sqrt 2)) = 0.76, a little less in whole scores
    low, high = found["auc"]["bootstrap"]
    assert low < 0.76 < high and high - low < 0.4
    assert found["comparison"]["non_inferior"] is False
    page = (tmp_path / "report/report.html").read_text()
    for said in ("Table 5", "anna", "8.081±0.363", "Krippendorff", "non-inferior", "Hanley", "data:image/png;base64"):
        assert said in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    table = list(csv.reader((tmp_path / "report/table5.csv").open(encoding="utf-8")))
    assert table[0] == ["arm", "A", "B", "mean"] and [row[0] for row in table[1:]] == ["real", "synthetic"]
    mean = np.mean([own[(~scores.synthetic) & (np.array(scores.labels) == "A")].mean() for own in scores.values])
    assert float(table[1][1].split("±")[0]) == pytest.approx(mean, abs=5e-4)


def test_an_unfinished_study_keeps_its_key_unless_told(tmp_path):
    study = made_study(tmp_path, per_class=4)
    read(study, 1.0, places=12)
    with pytest.raises(PathUpError, match=r"anna \(12 of 19\), ben \(12 of 19\) have images left"):
        write_report(study, tmp_path / "report")
    with pytest.raises(PathUpError, match="the key is exported when all are read"):
        write_export(study, tmp_path / "key.csv", with_key=True)
    assert not (tmp_path / "report").exists() and not (tmp_path / "key.csv").exists()
    write_report(study, tmp_path / "report", interim=True)
    assert "Interim" in (tmp_path / "report/report.html").read_text()
    assert write_export(study, tmp_path / "answers.csv", with_key=False) == 2 * 13
    text = (tmp_path / "answers.csv").read_text()
    assert "synthetic" not in text and ".jpg" not in text and ".png" not in text


def test_an_export_has_every_answer_and_says_which_count(study, tmp_path):
    assert write_export(study, tmp_path / "all.csv", with_key=True) == 3 * 89  # 80, 8 twice, one changed
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["counts"] for row in rows].count("no") == 3
    assert {row["arm"] for row in rows} == {"real", "synthetic"}
    assert {row["comment"] for row in rows} == {"", "'=1+1"}  # no spreadsheet takes it for a formula


def test_without_answers_there_is_no_report(tmp_path):
    study = made_study(tmp_path)
    with pytest.raises(PathUpError, match=r"real and synthetic|both arms"):
        write_report(study, tmp_path / "report", interim=True)


def test_csv_survives_what_people_write():
    rows = [{"a": 'say "no", please\nor not', "b": "-1"}, {"a": None, "b": 3}]
    back = list(csv.DictReader(csv_text(rows, ("a", "b")).splitlines(keepends=True)))
    assert back == [{"a": 'say "no", please\nor not', "b": "'-1"}, {"a": "", "b": "3"}]
