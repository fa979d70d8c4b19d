"""C15 and C16: their verdicts on made-up results."""

import numpy as np
import pytest
import xarray as xr

from lowdyn.claims import c15_adapters, c16_few_shot_adapters
from lowdyn.claims.claim import verdict
from lowdyn.experiments import adapt_vit, fewshot_sts
from lowdyn.experiments.experiment import combine


def vit_results(*, behind=0.001, share=0.018):
    accuracy = [0.97, 0.97 - behind, 0.9, 0.95]
    run = xr.Dataset(
        {
            "accuracy": (("data", "tuning"), [accuracy]),
            "trainable": (("data", "tuning"), [[1000.0, 1000 * share, 30.0, 19.0]]),
            "rate": (("data", "tuning"), [[1e-3] * 4]),
            "parameters": ("data", [1000]),
            "pretraining_accuracy": 0.99,
        },
        coords={"data": ["digits"], "tuning": list(adapt_vit.METHODS)},
        attrs={"pretrained_on": "digits"},
    )
    return {"adapt-vit": combine([({"rank": 2}, [run, run])], [0, 1])}


@pytest.mark.parametrize(
    ("options", "holds"), [({}, [True, True]), ({"behind": 0.006}, [False, True]), ({"share": 0.021}, [True, False])]
)
def test_lora_is_held_against_full_fine_tuning_and_its_share(options, holds):
    checks = c15_adapters.check(vit_results(**options))
    assert [check.holds for check in checks if check.holds is not None] == holds
    assert len(c15_adapters.draw(vit_results()).data) >= 4


def sts_results(*, gain=0.05, noise=0.01, deep_rank=3.0, deep_spread=0.0, ranks=(8, 64), seeds=3):
    rng = np.random.default_rng(0)
    cells = []
    for samples, rank in ((16, 8), *((64, rank) for rank in ranks)):
        runs = []
        for _ in range(seeds):
            common = 0.7 + 0.01 * rng.standard_normal()
            deep = common + gain + noise * rng.standard_normal() + deep_spread * (rank > 8)
            score = [common - 0.02 * (rank > 8), common - 0.1, deep]
            run = xr.Dataset(
                {"score": ("tuning", score), "update_rank": ("tuning", [8.0, 8.0, deep_rank])},
                coords={"tuning": list(fewshot_sts.METHODS)},
            )
            runs.append(run.assign(rate=("tuning", [1e-3] * 3), before=0.6))
        cells.append(({"samples": samples, "rank": rank}, runs))
    return {"fewshot-sts": combine(cells, list(range(seeds)))}


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        ({}, [True, True, True]),
        ({"gain": 0.0}, [False, True, True]),
        ({"gain": 0.05, "noise": 0.2}, [False, True, False]),
        ({"deep_rank": 8.0}, [True, False, True]),
        ({"deep_spread": 0.1}, [True, True, False]),
        ({"ranks": (8,)}, [True, True]),  # of one rank there is no spread to judge
        ({"seeds": 1, "ranks": ()}, [False, True]),  # of one number there is no error
    ],
)
def test_deep_lora_is_judged_three_times(options, holds):
    checks = c16_few_shot_adapters.check(sts_results(**options))
    assert [check.holds for check in checks if check.holds is not None] == holds
    assert verdict(checks) is all(holds)
    assert len({check.text for check in checks}) == len(checks)
    assert len(c16_few_shot_adapters.draw(sts_results(**options)).data) >= 4


def unknown_in_the_second_seed(data, variable, method):
    """The results without the numbers of one method in the second seed."""
    return data.assign({variable: data[variable].where((data["seed"] != 1) | (data["tuning"] != method))})


@pytest.mark.parametrize(
    ("variable", "method", "holds"),
    [
        ("accuracy", "full", [False, True]),
        ("accuracy", "lora", [False, True]),
        ("trainable", "lora", [True, False]),
    ],
)
def test_what_is_not_a_number_is_no_evidence_for_lora(variable, method, holds):
    results = {name: unknown_in_the_second_seed(data, variable, method) for name, data in vit_results().items()}
    assert [check.holds for check in c15_adapters.check(results) if check.holds is not None] == holds


@pytest.mark.parametrize(
    ("variable", "method", "holds"),
    [
        ("score", "deep_lora", [False, True, False]),
        ("score", "lora", [False, True, False]),
        ("score", "plain_lora", [False, True, False]),
        ("update_rank", "deep_lora", [True, False, True]),
        ("update_rank", "lora", [True, False, True]),
    ],
)
def test_what_is_not_a_number_is_no_evidence_for_deep_lora(variable, method, holds):
    results = {name: unknown_in_the_second_seed(data, variable, method) for name, data in sts_results().items()}
    assert [check.holds for check in c16_few_shot_adapters.check(results) if check.holds is not None] == holds


def test_rates_are_shown_where_they_were_chosen():
    def rows(data):
        return [check.text for check in c16_few_shot_adapters.check({"fewshot-sts": data})]

    chosen = sts_results()["fewshot-sts"]
    given = chosen.assign_coords(lr=("cell", [3e-3] * chosen.sizes["cell"]))
    assert set(rows(chosen)) - set(rows(given)) == {"learning rates chosen"}


def test_the_better_lora_is_the_judge():
    data = sts_results()["fewshot-sts"]
    swapped = data.assign_coords(tuning=["plain_lora", "lora", "deep_lora"])
    texts = [c16_few_shot_adapters.check({"fewshot-sts": one})[0] for one in (data, swapped)]
    assert "LoRA (PEFT)" in texts[0].text
    assert "LoRA (paper's baseline)" in texts[1].text
    assert texts[0].measured == texts[1].measured


def test_who_stays_at_the_start_while_the_others_lose_has_won_nothing():
    data = sts_results()["fewshot-sts"]
    lost = data["score"].where(data["tuning"] == "deep_lora", 0.1)
    still = data.assign(score=lost, before=lost.sel(tuning="deep_lora", drop=True))
    first, *_ = c16_few_shot_adapters.check({"fewshot-sts": still})
    assert "no training" in first.text
    assert (first.measured, first.holds) == (0.0, False)
