"""The STS Benchmark: read as it is, refused when it is not; and data sets by one name."""

from pathlib import Path

import numpy as np
import pytest

from lowdyn.data import DataError, DataMissing, SentencePairs, load_sentence_pairs, load_set, set_available
from lowdyn.data.sentences import SIZES, URL

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"


pytestmark = pytest.mark.usefixtures("no_data_folder")


def line(i, score="2.500", first="A sentence.", second='Another, "quoted in part.'):
    return "\t".join(("main-news", "MSRpar", "2012test", f"{i:04}", score, f"{first} {i}", second))


def write(folder, split="train", ending="\n", change=None):
    """A file in the official form, with sentences of no interest; `change` (line number, text) spoils one."""
    lines = [line(i) for i in range(SIZES[split])]
    if change:
        lines[change[0]] = change[1]
    place = folder / "stsbenchmark"
    place.mkdir(exist_ok=True)
    (place / f"sts-{split}.csv").write_bytes("".join(one + ending for one in lines).encode())
    return place


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("split", SIZES)
def test_fields_are_split_at_tabs_and_never_unquoted(tmp_path, split, ending):
    write(tmp_path, split, ending, (7, line(7, "5.000", "It’s “here”") + "\tlicence\tmore"))
    pairs = load_sentence_pairs("sts_benchmark", tmp_path, split)
    assert (len(pairs), pairs.full_size, pairs.split) == (SIZES[split], SIZES[split], split)
    assert (pairs.first[7], pairs.second[7], pairs.scores[7]) == ("It’s “here” 7", 'Another, "quoted in part.', 5.0)
    assert pairs.scores[0] == 2.5


def test_pairs_are_taken_in_the_order_asked_for(tmp_path, monkeypatch):
    write(tmp_path, "dev")
    monkeypatch.setenv("LOWDYN_DATA", str(tmp_path))
    pairs = load_sentence_pairs(split="dev")
    some = pairs.take(np.array([3, 1]))
    assert some.first == ("A sentence. 3", "A sentence. 1")
    assert some.used == "2 of 1 500 pairs"
    assert len({pairs.sha256, some.sha256, pairs.take(np.array([1, 3])).sha256}) == 3
    assert pairs.take(np.arange(1500)).sha256 == pairs.sha256


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (line(4, "5.1"), r"line 5: found the score '5\.1', needed a number from 0 to 5"),
        (line(4, "nan"), "line 5: found the score 'nan'"),
        (line(4, "high"), "line 5: found the score 'high'"),
        (line(4).rpartition("\t")[0], "line 5: found 6 fields, needed 7"),
        (line(4, second=""), "line 5: found 7 fields, needed 7 with a score and two sentences"),
        (line(4) + "\n" + line(4), "found 5750 lines, needed 5749"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path, spoiled, message):
    place = write(tmp_path, change=(4, spoiled))
    with pytest.raises(DataError, match=message) as caught:
        load_sentence_pairs(folder=tmp_path)
    assert str(place / "sts-train.csv") in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = write(tmp_path) / "sts-train.csv"
    file.write_bytes(file.read_bytes().replace(b"A sentence. 9\t", b"A \xff. 9\t"))
    with pytest.raises(DataError, match=r"cannot be read .UnicodeDecodeError"):
        load_sentence_pairs(folder=tmp_path)


def test_what_is_missing_is_said_in_one_line(tmp_path):
    for folder, message in (
        (None, "no data folder; .*LOWDYN_DATA, and put stsbenchmark/sts-dev.csv from"),
        (tmp_path, f"no sts-dev.csv in {tmp_path}/stsbenchmark; get it from {URL}"),
    ):
        with pytest.raises(DataMissing, match=message) as caught:
            load_sentence_pairs(folder=folder, split="dev")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="split must be one of 'train', 'dev', 'test', got 'valid'"):
        load_sentence_pairs(split="valid")
    with pytest.raises(ValueError, match="name must be one of 'sts_benchmark'"):
        load_sentence_pairs("sts")


@pytest.mark.parametrize(
    ("first", "second", "scores", "message"),
    [
        (("a",), ("b", "c"), [1.0], "1 first and 2 second sentences"),
        ((), (), [], "at least one pair"),
        (("a",), ("b",), [5.5], "scores from 5.5 to 5.5"),
        (("a",), ("b",), [np.nan], "scores from nan"),
    ],
)
def test_pairs_are_whole(first, second, scores, message):
    with pytest.raises(ValueError, match=message):
        SentencePairs("sts_benchmark", "train", first, second, np.array(scores), 5749)


def test_every_set_has_one_name(tmp_path):
    write(tmp_path, "train")
    assert not set_available("sts_benchmark/dev", tmp_path)
    write(tmp_path, "dev")
    assert set_available("sts_benchmark", tmp_path)
    assert load_set("sts_benchmark/dev", tmp_path).split == "dev"
    assert load_set("digits").split == "train"
    assert not set_available("mnist/train", tmp_path)
    with pytest.raises(ValueError, match="name must be one of"):
        load_set("letters")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not beside the repository")
def test_the_official_files():
    for split, mean in (("train", 2.70), ("dev", 2.36), ("test", 2.61)):
        pairs = load_sentence_pairs(folder=SHARED, split=split)
        assert len(pairs) == SIZES[split]
        assert pairs.scores.mean() == pytest.approx(mean, abs=0.01)
