"""The parser of MS Web, and features of a small example."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sedq.datasets._msweb import features, known_space, url_words, words
from sedq.datasets._msweb_files import parse
from sedq.datasets._requests import Bags

pytestmark = pytest.mark.any_isa

AREAS = (
    'I,4,"www.example.com","made for a test"\n'
    'T,1,"VRoot",0,0,"VRoot"\n'
    'N,0,"0"\n'
    'A,1003,1,"MS Excel, Support","/msexcelsupport"\n'
    'A,1001,1,"MS Excel","/excel"\n'
    'A,1002,1,"Support Desktop","/support"\n'
    'A,1000,1,"regwiz","/regwiz"\n'
    'A,1004,1,"K-12 ""School""","/k-12"\n'
)
TRAIN = 'C,"1",1\nV,1003,1\nV,1001,1\nC,"2",2\nV,1001,1\nC,"3",3\nV,1000,1\nV,1002,1\nV,1001,1\n'
TEST = 'C,"4",4\nV,1002,1\nV,1004,1\n'


def write(folder: Path, train: str = AREAS + TRAIN, test: str = AREAS + TEST) -> tuple[Path, Path]:
    paths = folder / "x.data", folder / "x.test"
    for path, text in zip(paths, (train, test), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


# ------------------------------------------------------------------------------------------ parser


def test_parse_reads_areas_and_users(tmp_path: Path) -> None:
    raw = parse(*write(tmp_path))
    assert raw.area_ids.tolist() == [1000, 1001, 1002, 1003, 1004]
    titles = ["regwiz", "MS Excel", "Support Desktop", "MS Excel, Support", 'K-12 "School"']
    assert raw.titles.tolist() == titles
    assert raw.urls.tolist() == ["/regwiz", "/excel", "/support", "/msexcelsupport", "/k-12"]
    assert [user.tolist() for user in raw.train_users] == [[1, 3], [1], [0, 1, 2]]
    assert [user.tolist() for user in raw.test_users] == [[2, 4]]
    assert raw.train_users[0].dtype == np.int64


def test_parse_accepts_blank_lines_crlf_and_users_without_visits(tmp_path: Path) -> None:
    text = (AREAS + '\nC,"1",1\nC,"2",2\nV,1000,1\n\n').replace("\n", "\r\n")
    raw = parse(*write(tmp_path, train=text))
    assert [user.tolist() for user in raw.train_users] == [[], [0]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("V,1001", "2 fields instead of 3"),
        ("V,1001,1,1", "4 fields instead of 3"),
        ("V,abc,1", "abc"),
        ("V,9999,1", "unknown area 9999"),
        ('C,"5"', "2 fields instead of 3"),
        ('A,1005,1,"no url"', "4 fields instead of 5"),
        ('A,x,1,"title","/url"', "x"),
        ('A,1001,1,"again","/again"', "listed twice"),
        ("X,1", "unknown line type 'X'"),
        ('A,1005,1,"open,"/url"', ""),
        ('A,1005,1,"caf\u00e9","/cafe"', "ascii"),
    ],
)
def test_parse_reports_file_and_line_of_malformed_input(tmp_path: Path, line: str, message: str) -> None:
    paths = write(tmp_path, train=AREAS + 'C,"1",1\n' + line + '\nC,"2",2\n')
    with pytest.raises(ValueError, match=r"x\.data, line 10: .*" + message):
        parse(*paths)


def test_parse_rejects_votes_without_user_and_repeated_votes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 9: vote line before"):
        parse(*write(tmp_path, train=AREAS + "V,1001,1\n"))
    with pytest.raises(ValueError, match="line 11: area 1001 visited twice"):
        parse(*write(tmp_path, train=AREAS + 'C,"1",1\nV,1001,1\nV,1001,1\n'))


def test_parse_rejects_missing_or_differing_areas(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.data: no area line"):
        parse(*write(tmp_path, train=""))
    with pytest.raises(ValueError, match=r"x\.test: areas differ"):
        parse(*write(tmp_path, test=AREAS.replace("MS Excel", "MS Word") + TEST))


def test_words() -> None:
    assert words("MS Office 97: k-12_fun!") == ["ms", "office", "97", "k", "12", "fun"]
    assert words("...") == []


def test_url_words_cut_at_known_words() -> None:
    known = frozenset({"ms", "excel", "support", "a", "x", "ex", "cel"})
    assert url_words("/msexcelsupport", known) == ["ms", "excel", "support"]  # the fewest pieces
    assert url_words("/msexcelsupports", known) == ["msexcelsupports"]
    assert url_words("/excel97", known) == ["excel", "97"]
    assert url_words("/ax", known) == ["ax"]  # no pieces of one letter


# ---------------------------------------------------------------------------------------- features


def test_features_of_a_small_example(tmp_path: Path) -> None:
    raw = parse(*write(tmp_path))
    popularity = np.array([1, 3, 1, 1, 0])
    unit = known_space(raw.titles, raw.urls, popularity, np.zeros(8), np.ones(8))
    # Words in order: title 12 desktop excel k ms regwiz school support; URL likewise, with 12 excel
    # k ms regwiz support.
    dense, indices, offsets = features(unit, Bags.of([[1, 2], []]), np.array([3, 0]))
    assert [i.tolist() for i in indices] == [
        [1, 2],
        [4, 2, 7, 1],
        [1, 5],
        [3, 0],
        [4, 2, 7, 5],
        [3, 1, 5, 4],
    ]
    assert [o.tolist() for o in offsets] == [[0, 2, 2], [0, 4, 4], [0, 2, 2], [0, 1, 2], [0, 3, 4], [0, 3, 4]]
    log = np.log1p
    expected = [
        [log(2), log(4), log(2), 3, 3, log(1), (log(3) + log(1)) / 2, 1.5],
        [0, 0, 0, 1, 1, log(1), 0, 0],
    ]
    np.testing.assert_allclose(dense, np.array(expected), rtol=1e-6)
