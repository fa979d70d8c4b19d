"""Trajectories kept as evidence: small enough, and of the same verdicts as the whole ones."""

import numpy as np
import pytest
import xarray as xr

from lowdyn import trajectory
from lowdyn.claims.claim import above, near, shown
from lowdyn.runner.folder import as_netcdf
from tests.claim_runs import CLAIMS, smoke
from tests.test_benchmarks import loaded


@pytest.fixture(scope="module")
def evidence():
    return loaded("evidence")


def run():
    """A run whose ``exact`` is judged to more digits than single precision has, and whose ``coarse`` is not."""
    rng = np.random.default_rng(0)
    exact, coarse = 1 + 1e-12 * rng.random((101, 20)), rng.random((101, 60))
    data = {"exact": (("step", "index"), exact), "coarse": (("step", "place"), coarse)}
    return xr.Dataset(data, coords={"step": np.arange(0, 1010, 10)})


def checks(data):
    return [
        near("exact", data["exact"] - 1, 5e-13, 6e-13),
        shown("exact, largest", float(data["exact"].max() - 1), "—"),
        shown("coarse", float(data["coarse"].isel(step=-1).mean()), "—"),
        above("last step", data["step"].max(), 999),
    ]


def test_what_fits_is_only_compressed(evidence):
    kept = evidence.fitted(run(), checks, evidence.LIMIT)
    xr.testing.assert_identical(kept, run())


def test_single_precision_is_for_what_is_judged_by_fewer_digits(evidence):
    kept = evidence.fitted(run(), checks, 45_000)
    assert kept["coarse"].dtype == np.float32
    assert kept["exact"].dtype == np.float64
    assert kept.sizes["step"] == 101
    assert checks(kept)[:2] == checks(run())[:2]


@pytest.mark.parametrize("tiny", [1e-60, 1e60])
def test_what_single_precision_does_not_hold_keeps_its_own(evidence, tiny):
    data = run().assign(other=("step", np.random.default_rng(1).random(101) * tiny))
    kept = evidence.fitted(data, checks, 30_000)
    assert [str(kept[name].dtype) for name in ("coarse", "other")] == ["float32", "float64"]
    assert np.isin(kept["other"], data["other"]).all()


def test_records_are_left_out_last(evidence):
    kept = evidence.fitted(run(), checks, 20_000)
    assert len(as_netcdf(kept)) <= 20_000
    assert kept["step"].values[[0, -1]].tolist() == [0, 1000]
    assert 2 < kept.sizes["step"] < 101
    assert [check.holds for check in checks(kept)] == [check.holds for check in checks(run())]


def test_a_verdict_that_needs_every_record_is_not_thinned_away(evidence):
    def all_there(data):
        return [above("records", data.sizes["step"], 100)]

    with pytest.raises(ValueError, match="no thinning to 20000 bytes leaves the checks as they are"):
        evidence.fitted(run(), all_there, 20_000)


def test_kept_runs_of_an_exact_claim_say_what_they_said(evidence, tmp_path, monkeypatch):
    (name,), (data,) = zip(*smoke("C4").items(), strict=True)
    trajectory.save(data, tmp_path / "run" / name / "trajectory.nc")
    monkeypatch.setattr(evidence, "PAPER", tmp_path / "kept")
    monkeypatch.setattr(evidence, "LIMIT", 430_000)
    evidence.main(tmp_path / "run", [])
    place = tmp_path / "kept" / name / "trajectory.nc"
    assert place.stat().st_size <= 430_000 < (tmp_path / "run" / name / "trajectory.nc").stat().st_size
    kept = trajectory.load(place)
    assert "in single precision" in kept.attrs["thinned"]
    assert [check.sentence() for check in CLAIMS["C4"].check({name: kept})] == [
        check.sentence() for check in CLAIMS["C4"].check(smoke("C4"))
    ]


def test_what_is_small_is_copied(evidence, tmp_path, monkeypatch):
    source = trajectory.save(run(), tmp_path / "run" / "small" / "trajectory.nc")
    monkeypatch.setattr(evidence, "PAPER", tmp_path / "kept")
    evidence.main(tmp_path / "run", ["small"])
    assert (tmp_path / "kept" / "small" / "trajectory.nc").read_bytes() == source.read_bytes()
