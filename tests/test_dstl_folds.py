"""Folds by ground: nothing learnt is scored, and rare classes are on both sides where they can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satseg.errors import LabelError, UsageError
from satseg.tasks.dstl.facts import ground_of, tile_ground_of
from satseg.tasks.dstl.folds import check_split, kfold

REGIONS = [str(number) for number in range(6010, 6190, 10)]
tiles = st.builds("{}_{}_{}".format, st.sampled_from(REGIONS), st.integers(0, 4), st.integers(0, 4))


@settings(max_examples=60)
@given(
    ids=st.sets(tiles, min_size=4, max_size=40), seed=st.integers(0, 5), by=st.sampled_from(["region", "tile"]),
    folds=st.integers(2, 6),
)  # fmt: skip
def test_every_tile_is_validated_once_and_never_with_its_ground_in_training(ids, seed, by, folds):
    grounds = {(ground_of if by == "region" else tile_ground_of)(i) for i in ids}
    rng = np.random.default_rng(seed)
    areas = {i: rng.integers(0, 2, 10) for i in ids}
    if len(grounds) < folds:
        with pytest.raises(UsageError, match="grounds"):
            kfold(areas, folds=folds, seed=seed, by=by)
        return
    splits = kfold(areas, folds=folds, seed=seed, by=by)
    assert sorted(i for split in splits for i in split.valid) == sorted(ids)
    for split in splits:
        assert min(len(split.valid), len(split.train)) > 0, "no fold is empty"
        assert sorted((*split.train, *split.valid)) == sorted(ids)
        check_split(split.train, split.valid, by=by)
        check_split(split.train, split.valid, by="tile")
    turned = dict(reversed(list(areas.items())))
    assert splits == kfold(turned, folds=folds, seed=seed, by=by), "order counts for nothing"


@pytest.mark.parametrize("seed", range(8))
def test_a_class_of_two_grounds_is_learnt_and_validated(seed):
    ids = [f"{region}_0_0" for region in REGIONS[:12]]
    rng = np.random.default_rng(seed)
    areas = {i: (rng.random(10) < 0.6).astype(float) for i in ids}
    rare = [ids[int(i)] for i in rng.choice(8, 2, replace=False)]
    for i in ids:
        areas[i][6] = i in rare
    splits = kfold(areas, folds=5, seed=seed)
    assert [sum(i in rare for i in split.valid) for split in splits].count(1) == 2


def test_folds_are_about_equal_and_another_seed_gives_others():
    areas = {f"{region}_0_{c}": np.ones(10) for region in REGIONS for c in range(2)}
    sizes = [len(split.valid) for split in kfold(areas, folds=5)]
    assert max(sizes) - min(sizes) <= 4, "grounds have two or four tiles"
    assert len({kfold(areas, folds=5, seed=seed) for seed in range(5)}) > 1


def test_the_split_that_leaked_in_public_solutions_is_refused():
    valid = ["6140_3_1", "6110_1_2", "6160_2_1", "6170_0_4", "6100_2_2"]
    train = ["6110_3_1", "6140_1_2", "6010_1_2"]
    for by in ("region", "tile"):
        with pytest.raises(LabelError, match=r"6110_1_2 shows ground of .*6140_1_2|and 1 more") as caught:
            check_split(train, valid, by=by)
        assert caught.value.code == "E-LAB-321"
    check_split(["6110_3_1"], ["6140_1_2"], by="tile")  # neighbours, and no twins


def test_fewer_than_two_folds_are_refused():
    with pytest.raises(UsageError):
        kfold({"6010_0_0": [1], "6040_0_0": [1]}, folds=1)
