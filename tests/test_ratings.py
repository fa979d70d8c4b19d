"""Ratings with ids: the matrix they make, MovieLens-100K and its folds, and what is refused."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdyn.data import DataError, DataMissing, RatingSet, load_ratings, load_set, ratings_available, set_available
from lowdyn.data.ratings import SPLITS
from lowdyn.recovery import ratings_matrix
from lowdyn.recovery.ratings import RatingError

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
TRIPLES = [("ann", "Alien", 5.0), ("bob", "Brazil", 3.0), ("ann", "Brazil", 0.0), (7, ("a", 1), -2.5)]


pytestmark = pytest.mark.usefixtures("no_data_folder")


# --- ids


def test_ids_of_any_kind_come_back_in_the_order_they_came():
    matrix, rows, columns = ratings_matrix(iter(TRIPLES))
    assert rows.tolist() == ["ann", "bob", 7]
    assert columns.tolist() == ["Alien", "Brazil", ("a", 1)]
    assert matrix.shape == (3, 3)
    assert matrix.nnz == 4  # a rating of zero is one
    assert dict(zip(zip(*matrix.nonzero(), strict=True), matrix.data[matrix.data != 0], strict=True)) == {
        (0, 0): 5.0,
        (1, 1): 3.0,
        (2, 2): -2.5,
    }


@given(st.dictionaries(st.tuples(st.text(max_size=3), st.integers(-5, 5)), st.floats(-10, 10), min_size=1))
def test_every_rating_is_found_again(ratings):
    matrix, rows, columns = ratings_matrix((row, column, value) for (row, column), value in ratings.items())
    assert matrix.nnz == len(ratings)
    places = [{one: place for place, one in enumerate(ids.tolist())} for ids in (rows, columns)]
    assert [len(one) for one in places] == list(matrix.shape)
    dense = matrix.toarray()
    for (row, column), value in ratings.items():
        assert dense[places[0][row], places[1][column]] == value


def test_a_frame_is_its_first_three_columns():
    frame = pd.DataFrame(TRIPLES[:3], columns=["who", "what", "how"]).assign(when=0)
    matrix, rows, columns = ratings_matrix(frame)
    expected = ratings_matrix(TRIPLES[:3])
    np.testing.assert_array_equal(matrix.toarray(), expected[0].toarray())
    assert (rows.tolist(), columns.tolist()) == (expected[1].tolist(), expected[2].tolist())
    whole = pd.DataFrame({"u": [3, 1], "i": [10, 10], "r": [1, 2]})
    assert ratings_matrix(whole)[1].dtype == np.int64
    with pytest.raises(TypeError, match=r"needed|is needed, got columns \['u', 'i'\]"):
        ratings_matrix(whole[["u", "i"]])


@pytest.mark.parametrize(
    ("triples", "position", "message"),
    [
        ([*TRIPLES, ("bob", "Brazil", 4), ("ann", "Alien", 1)], 4, r"\('bob', 'Brazil'\) has a rating already"),
        ([("a", "b", 1), ("a", "c", float("nan"))], 1, "its value is nan"),
        ([("a", "b", float("inf"))], 0, "its value is inf"),
        ([("a", "b", "good")], 0, "could not convert"),
        ([("a", "b")], 0, "needed .row id, column id, number., got .'a', 'b'."),
        ([("a", ["b"], 1)], 0, "unhashable"),
        ([("a", "b", 1), (None, "b", 1)], 1, "an id is missing: None, 'b'"),
        ([("a", float("nan"), 1)], 0, "an id is missing"),
    ],
)
def test_a_rating_that_cannot_be_used_is_named(triples, position, message):
    with pytest.raises(RatingError, match=message) as caught:
        ratings_matrix(triples)
    assert caught.value.position == position
    assert str(caught.value).startswith(f"rating {position}: ")


@pytest.mark.parametrize("name", ["who", "what"])
@pytest.mark.parametrize("dtype", ["Int64", "string", "object", "float64", "datetime64[ns]"])
def test_a_gap_among_the_ids_of_a_frame_is_named(name, dtype):
    gap = pd.Series([3, 5, None, None], dtype="float64").astype("Int64").astype(dtype)
    frame = pd.DataFrame({"who": [7, 8, 9, 9], "what": [1, 2, 3, 4], "how": 1.0}).assign(**{name: gap})
    with pytest.raises(RatingError, match="rating 2: an id is missing: "):
        ratings_matrix(frame)


def test_a_gap_among_the_values_of_a_frame_is_named():
    frame = pd.DataFrame({"who": [7, 8], "what": [1, 2], "how": pd.Series([1, None], dtype="Int64")})
    with pytest.raises(RatingError, match=r"rating 1: needed \(row id, column id, number\), got \(8, 2, <NA>\)"):
        ratings_matrix(frame)


def test_no_ratings_make_an_empty_matrix():
    matrix, rows, columns = ratings_matrix([])
    assert (matrix.shape, len(rows), len(columns)) == ((0, 0), 0, 0)


# --- MovieLens-100K, in its form but with other numbers


@pytest.fixture(scope="module")
def table():
    """100 000 pairs of users and films, none twice, rated at random."""
    generator = np.random.default_rng(0)
    users, films = np.divmod(np.sort(generator.choice(943 * 1682, 100_000, replace=False)), 1682)
    order = generator.permutation(100_000)
    return np.column_stack([users + 1, films + 1, generator.integers(1, 6, 100_000), 10**9 + users])[order]


def write(place, table):
    place.mkdir(parents=True, exist_ok=True)
    text = "\n".join("\t".join(map(str, row)) for row in table.tolist())
    (place / "u.data").write_text(text + "\n")
    return place / "u.data"


def test_folds_are_fifths_of_the_file_in_order(tmp_path, table):
    assert not ratings_available(tmp_path)
    write(tmp_path / "ml-100k", table)
    assert ratings_available(tmp_path)
    assert set_available("movielens_100k", tmp_path)
    whole = load_ratings(folder=tmp_path)
    assert (len(whole), whole.shape, whole.used) == (100_000, (943, 1682), "100 000 of 100 000 ratings")
    np.testing.assert_array_equal(np.column_stack([whole.rows + 1, whole.columns + 1, whole.values]), table[:, :3])
    tests = [whole.fold(number)[1] for number in range(1, 6)]
    assert [len(test) for test in tests] == [20_000] * 5
    np.testing.assert_array_equal(np.concatenate([test.values for test in tests]), whole.values)
    base, test = whole.fold(3)
    assert (base.split, test.split, base.used) == ("u3.base", "u3.test", "80 000 of 100 000 ratings")
    np.testing.assert_array_equal(base.values, np.concatenate([whole.values[:40_000], whole.values[60_000:]]))
    assert load_set("movielens_100k/u3.test", tmp_path).sha256 == test.sha256
    assert len({one.sha256 for one in (whole, base, *tests)}) == 7
    assert base.matrix().nnz == 80_000
    for refuses in (lambda: whole.fold(0), lambda: whole.fold(6), lambda: base.fold(1)):
        with pytest.raises(ValueError, match=r"number must be 1 to 5|folds are of the whole set"):
            refuses()


def test_the_archive_is_read_in_place(tmp_path, table):
    path = write(tmp_path / "elsewhere", table)
    (tmp_path / "ml-100k").mkdir()
    with zipfile.ZipFile(tmp_path / "ml-100k" / "ml-100k.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "ml-100k/u.data")
    expected = load_ratings(folder=write(tmp_path / "other" / "ml-100k", table).parents[1])
    assert load_ratings(folder=tmp_path).sha256 == expected.sha256


def test_the_busiest_users_and_films_are_numbered_anew():
    rows, columns = np.array([0, 0, 0, 2, 2, 3], np.int32), np.array([1, 2, 4, 1, 4, 4], np.int32)
    some = RatingSet("some", "all", rows, columns, np.arange(6.0), (4, 5), 6)
    users, films = some.busiest(2, 2)
    assert (users.tolist(), films.tolist()) == ([0, 2], [1, 4])
    part = some.among(users, films)
    assert (part.shape, part.rows.tolist(), part.columns.tolist()) == ((2, 2), [0, 0, 1, 1], [0, 1, 0, 1])
    assert part.values.tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table[:-1], r"found a table of \(99999, 4\)"),
        (lambda table: table[:, :3], r"found a table of \(100000, 3\)"),
        (lambda table: table + np.array([1, 0, 0, 0]), "users from 2 to 944, needed 1 to 943"),
        (lambda table: table - np.array([0, 1, 0, 0]), "films from 0 to"),
        (lambda table: table + np.array([0, 0, 1, 0]), "ratings from 2 to 6, needed 1 to 5"),
        (lambda table: np.vstack([table[:-1], table[:1]]), "rated twice"),
    ],
)
def test_another_file_is_refused(tmp_path, table, spoil, message):
    path = write(tmp_path / "ml-100k", spoil(table))
    with pytest.raises(DataError, match=message) as caught:
        load_ratings(folder=tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damage_is_refused_by_name(tmp_path):
    (tmp_path / "ml-100k").mkdir()
    path = tmp_path / "ml-100k" / "u.data"
    path.write_text("1\t2\tthree\t4\n")
    with pytest.raises(DataError, match=r"u\.data: cannot be read"):
        load_ratings(folder=tmp_path)
    path.unlink()
    (tmp_path / "ml-100k" / "ml-100k.zip").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"ml-100k\.zip: cannot be read"):
        load_ratings(folder=tmp_path)


def test_a_missing_set_is_one_line_with_folder_file_and_remedy(tmp_path):
    for folder, place in ((None, "LOWDYN_DATA"), (tmp_path, str(tmp_path / "ml-100k"))):
        with pytest.raises(DataMissing) as caught:
            load_ratings(folder=folder, split="u1.test")
        message = str(caught.value)
        assert "\n" not in message
        for part in ("movielens_100k (u1.test)", place, "u.data", "http", "download=True", "not to be redistributed"):
            assert part in message
    with pytest.raises(ValueError, match=r"split must be one of 'all', 'u1\.base', .*, got 'u6\.base'"):
        load_ratings(split="u6.base")
    with pytest.raises(ValueError, match="name must be one of 'movielens_100k'"):
        load_ratings("movielens_1m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.ones(2)}, "3 rows, 3 columns, 2 values"),
        ({"rows": np.array([0, 1, 4], np.int32)}, r"needed 0 and more, below \(4, 5\)"),
        ({"columns": np.array([0, -1, 2], np.int32)}, "needed 0 and more"),
    ],
)
def test_rating_sets_refuse_what_does_not_fit(changes, message):
    good = {name: np.arange(3, dtype=np.int32) for name in ("rows", "columns")} | {"values": np.ones(3)}
    with pytest.raises(ValueError, match=message):
        RatingSet("some", "all", **(good | changes), shape=(4, 5), full_size=3)


@pytest.mark.skipif(not (SHARED / "ml-100k").is_dir(), reason=f"no ratings: {SHARED / 'ml-100k'} is not there")
def test_the_real_folds_are_the_files_that_come_with_it():
    whole = load_ratings(folder=SHARED)
    assert np.bincount(whole.values.astype(int))[1:].tolist() == [6110, 11370, 27145, 34174, 21201]
    for split in SPLITS[1:]:
        held = load_ratings(folder=SHARED, split=split).matrix()
        table = np.loadtxt(SHARED / "ml-100k" / split, dtype=int)
        assert held.nnz == len(table)
        np.testing.assert_array_equal(held[table[:, 0] - 1, table[:, 1] - 1], table[:, 2])
