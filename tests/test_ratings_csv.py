"""Ratings in CSV files: what is read and written, line numbers of what is wrong, and the command complete."""

import csv
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from typer.testing import CliRunner

from lowdyn import cli, ratings_csv
from lowdyn.ratings_csv import CsvError, predict_pairs, read_columns, read_ratings
from lowdyn.recovery import DeepMatrixCompletion, ratings_matrix

NAMES = ("user", "item", "rating")


def write(path, *lines, encoding="utf-8"):
    path.write_bytes("".join(line + "\n" for line in lines).encode(encoding))
    return path


def complete(*arguments):
    result = CliRunner().invoke(cli.app, ["complete", *map(str, arguments)], catch_exceptions=False)
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def files(tmp_path):
    """Ratings of rank 1 with other columns around them, and pairs of known and unknown ids."""
    generator = np.random.default_rng(0)
    truth = 3 + generator.normal(size=(30, 1)) @ generator.normal(size=(1, 20))
    triples = [(f"u{i}", f"film, {j}", f"{truth[i, j]:.6f}") for i, j in np.argwhere(generator.random((30, 20)) < 0.6)]
    with (tmp_path / "ratings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rating", "when", "user", "item"])
        writer.writerows([value, "2001", user, film] for user, film, value in triples)
    pairs = [("u3", "film, 4"), ("nobody", "film, 4"), ("u3", "unheard of"), ("nobody", "unheard of")]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item", "user"), *[(film, user) for user, film in pairs]])
    return tmp_path, triples, pairs


def test_the_command_predicts_what_the_estimator_does(files):
    folder, triples, pairs = files
    out = folder / "new" / "predictions.csv"
    result = complete(folder / "ratings.csv", "--predict", folder / "pairs.csv", "--out", out, "--seed", 3)
    assert result.exit_code == 0, result.output
    matrix, users, films = ratings_matrix(triples)
    model = DeepMatrixCompletion(random_state=3).fit(matrix)
    places = [{one: place for place, one in enumerate(ids)} for ids in (users.tolist(), films.tolist())]
    indices = [
        [known.get(one, 999) for one in side] for known, side in zip(places, zip(*pairs, strict=True), strict=True)
    ]
    expected = model.predict_entries(*indices)
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["user", "item", "prediction"]
    assert [tuple(row[:2]) for row in rows] == pairs
    np.testing.assert_allclose([float(row[2]) for row in rows], expected, rtol=1e-5)
    for part in (f"{len(triples)} ratings, 30 users, 20 items", "4 predictions", str(out)):
        assert part in result.output
    assert f"validation RMSE {model.validation_curve_.min():.4f}, rank {model.rank_}" in result.output
    assert [path.name for path in out.parent.iterdir()] == ["predictions.csv"]


@pytest.mark.parametrize("pairs", [7, 6, 3, 1, 0])
def test_predictions_of_many_blocks_are_those_of_one(files, monkeypatch, pairs):
    folder, triples, _ = files
    matrix, users, films = ratings_matrix(triples)
    model = DeepMatrixCompletion(random_state=3).fit(matrix)
    rows, columns = [4, 999, 0, 7, 7, 29, 11][:pairs], [2, 5, 999, 0, 19, 3, 8][:pairs]
    names = [
        [[*ids.tolist(), *["unheard of"] * 1000][one] for one in side]
        for ids, side in ((users, rows), (films, columns))
    ]
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("user", "item"), *zip(*names, strict=True)])
    monkeypatch.setattr(ratings_csv, "_BLOCK", 3)
    out = folder / "out.csv"
    assert predict_pairs(model, (users, films), folder / "pairs.csv", ("user", "item"), out) == pairs
    with out.open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["user", "item", "prediction"]
    assert [line[:2] for line in lines] == [list(pair) for pair in zip(*names, strict=True)]
    assert [line[2] for line in lines] == [format(value, ".6g") for value in model.predict_entries(rows, columns)]


def test_other_names_and_another_delimiter(tmp_path):
    ratings = write(tmp_path / "r.csv", "\ufeffwho;what;how", "a;x;1", "", "b;x;2", "a;y;3", "b;y;4")
    pairs = write(tmp_path / "p.csv", "who;what", "a;x")
    names = ("--user", "who", "--item", "what", "--rating", "how", "--delimiter", ";", "--rank", "1")
    result = complete(ratings, "--predict", pairs, "--out", tmp_path / "o.csv", *names)
    assert result.exit_code == 0, result.output
    assert "unknown (too few ratings" in result.output
    assert (tmp_path / "o.csv").read_text().startswith("who;what;prediction\na;x;")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["user,item,stars", "a,b,1"], "line 1: no column rating; the columns are user, item, stars"),
        (["user,item, user,rating,item", "a,b,c,1,d"], "line 1: column user, item stands there more than once; rename"),
        ([], "line 1: no column user, item, rating; the columns are none"),
        (["user,item,rating", "a,b,1", "a,c"], "line 3: 2 fields, needed 3"),
        (["user,item,rating", "a,b,1", "a,c,2,9"], "line 3: 4 fields, needed 3"),
        (["user,item,rating", "a,b,1", "", "a,c,good"], "line 4: needed .row id, column id, number., got"),
        (["user,item,rating", "a,b,nan"], "line 2: its value is nan"),
        (["user,item,rating", "a,b,1", ",b,2"], "line 3: an id is missing: None, 'b'"),
        (["user,item,rating", '"a', 'b",x,1', "c,x,2", "c,x,3"], "line 5: .'c', 'x'. has a rating already"),
        (["user,item,rating", 'a,"b,1'], "line 2: unexpected end of data"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, lines, message):
    path = write(tmp_path / "ratings.csv", *lines)
    with pytest.raises(CsvError, match=message) as caught:
        read_ratings(path, NAMES)
    assert str(caught.value).startswith(f"{path}, line ")
    pairs = write(tmp_path / "pairs.csv", "user,item", "a,b")
    result = complete(path, "--predict", pairs, "--out", tmp_path / "out.csv")
    assert result.exit_code == 2
    assert result.output.splitlines() == [f"lowdyn: {caught.value}"]
    assert not (tmp_path / "out.csv").exists()


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = write(tmp_path / "ratings.csv", "user,item,rating", "é,b,1", encoding="latin-1")
    with pytest.raises(CsvError, match="not UTF-8"):
        read_ratings(path, NAMES)


def test_a_broken_line_among_the_pairs_leaves_the_old_predictions(files):
    folder, _, _ = files
    write(folder / "pairs.csv", "user,item", '"u3","film, 4"', "u3")
    out = write(folder / "predictions.csv", "those of yesterday")
    result = complete(folder / "ratings.csv", "--predict", folder / "pairs.csv", "--out", out)
    assert result.exit_code == 2
    assert "pairs.csv, line 3: 1 fields, needed 2" in result.output
    assert out.read_text() == "those of yesterday\n"
    assert sorted(path.name for path in folder.iterdir()) == ["pairs.csv", "predictions.csv", "ratings.csv"]


def test_a_column_that_is_not_needed_may_stand_twice(tmp_path):
    path = write(tmp_path / "ratings.csv", "note,user,item,rating,note", "x,a,b,1,y")
    assert list(read_columns(path, NAMES)) == [(2, ["a", "b", "1"])]


def test_a_column_of_the_pairs_that_stands_twice_is_refused(files):
    folder, _, _ = files
    write(folder / "pairs.csv", "user,item,user", "u3,x,u4")
    result = complete(folder / "ratings.csv", "--predict", folder / "pairs.csv", "--out", folder / "out.csv")
    assert result.exit_code == 2
    assert "pairs.csv, line 1: column user stands there more than once" in result.output
    assert not (folder / "out.csv").exists()


def test_bad_usage_is_refused_before_anything_is_read(files):
    folder, _, _ = files
    ratings, pairs, out = (folder / name for name in ("ratings.csv", "pairs.csv", "out.csv"))
    for arguments, message in (
        ((folder / "no.csv", "--predict", pairs, "--out", out), "there is no file"),
        ((ratings, "--predict", folder, "--out", out), "there is no file"),
        ((ratings, "--predict", pairs, "--out", folder), "is a folder or one of the files read"),
        ((ratings, "--predict", pairs, "--out", pairs), "is a folder or one of the files read"),
        ((ratings, "--predict", pairs, "--out", out, "--delimiter", "ab"), "must be one character"),
        ((ratings, "--predict", pairs, "--out", out, "--rank", "0"), "--rank"),
        (
            (ratings, "--predict", pairs, "--out", out, "--item", "user"),
            "three columns, got 'user', 'user' and 'rating'",
        ),
        ((ratings, "--predict", pairs, "--out", out, "--user", "rating"), "got 'rating', 'item' and 'rating'"),
        ((ratings, "--predict", pairs, "--out", out, "--rating", "item"), "got 'user', 'item' and 'item'"),
        ((ratings, "--predict", pairs), "--out"),
        ((write(folder / "none.csv", "user,item,rating"), "--predict", pairs, "--out", out), "no observed entries"),
    ):
        result = complete(*arguments)
        assert result.exit_code == 2, arguments
        assert message in result.output


def test_progress_is_told_and_ends_at_the_end(tmp_path):
    path = write(tmp_path / "r.csv", "user,item,rating", *(f"u{i},x,1" for i in range(150_000)))
    told = []
    lines = sum(1 for _ in read_columns(path, NAMES, advance=lambda *bytes: told.append(bytes)))
    assert lines == 150_000
    assert len(told) == 4
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]} == {path.stat().st_size}


def test_memory_is_that_of_the_matrix_not_of_the_file(tmp_path):
    """20 000 lines of 5 000 characters: 100 MB of text for less than one of numbers."""
    filler = "x" * 5000
    path = write(
        tmp_path / "r.csv", "user,item,rating,note", *(f"u{i % 300},i{i // 300},3,{filler}" for i in range(20_000))
    )
    tracemalloc.start()
    try:
        matrix, _, _ = read_ratings(path, NAMES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert matrix.nnz == 20_000
    assert peak < 8 * 2**20


def test_help_does_not_load_torch():
    code = "import sys\nfrom lowdyn.cli import app\ntry: app(['complete', '--help'])\nexcept SystemExit: pass\n"
    loaded = f"{code}print([name for name in ('torch', 'sklearn', 'numba', 'numpy') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert "RATINGS.CSV" in run.stdout
    assert run.stdout.splitlines()[-1] == "[]"
