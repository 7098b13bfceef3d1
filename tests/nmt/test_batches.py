"""The batch plan: complete, within its budget, and a function of seed and epoch."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.batches import Lengths, Rows, collate, packed, plan_epoch, target_tokens
from nmt.config import TrainConfig
from pipelines.epoch_rows import trainable_rows
from pipelines.shards import ShardColumns
from pipelines.tokenizer import BOS_ID, PAD_ID

lengths = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=200)


@settings(max_examples=60)
@given(lengths, st.integers(1, 300), st.integers(1, 4), st.integers(0, 3))
def test_every_row_is_in_one_micro_batch_within_the_budget(
    pairs: list[tuple[int, int]], budget: int, per_update: int, epoch: int
) -> None:
    src, tgt = (np.asarray(side) for side in zip(*pairs))
    rows = trainable_rows(src, tgt, 50)
    assert rows.tolist() == [i for i, (s, t) in enumerate(pairs) if s <= 50 and t <= 50]
    if not len(rows):
        return
    config = TrainConfig(microbatch_tokens=budget, microbatches_per_update=per_update)
    plan = plan_epoch(config, epoch, src, tgt, rows)
    assert sorted(row for update in plan for batch in update for row in batch) == rows.tolist()
    assert all(len(update) == per_update for update in plan[:-1])
    for update in plan:
        for batch in update:
            assert len(batch) == 1 or len(batch) * max(src[batch].max(), tgt[batch].max()) <= budget
    assert sum(target_tokens(update, tgt) for update in plan) == tgt[rows].sum()


def test_the_plan_is_a_function_of_seed_and_epoch() -> None:
    rng = np.random.default_rng(1)
    src, tgt = rng.integers(5, 30, 500), rng.integers(5, 30, 500)
    rows = trainable_rows(src, tgt, 100)

    def flat(seed: int, epoch: int) -> list[int]:
        plan = plan_epoch(TrainConfig(seed=seed, microbatch_tokens=200), epoch, src, tgt, rows)
        return [int(row) for update in plan for batch in update for row in batch]

    assert flat(1, 0) == flat(1, 0)
    assert flat(1, 0) != flat(1, 1)
    assert flat(1, 0) != flat(2, 0)


def test_the_plan_is_the_one_that_it_has_always_been() -> None:
    # Stored in the first version: a run that was begun with an older one continues with the same updates.
    rng = np.random.default_rng(7)
    src, tgt = rng.integers(2, 60, 400), rng.integers(2, 60, 400)
    rows = trainable_rows(src, tgt, 50)
    config = TrainConfig(seed=5, microbatch_tokens=300, microbatches_per_update=3)
    for epoch, first, digest in (
        (0, [391, 69, 146, 317, 143, 259, 336], "242afa1002d92155de4c3447f10087bf49b60786531909944ca8716a20fee643"),
        (1, [375, 8, 379, 228, 205, 116], "52dcf334d8f9f147a175a5026da5d8bce6f171f78a087e2edf3d7afa9e71f4e8"),
    ):
        plan = plan_epoch(config, epoch, src, tgt, rows)
        assert len(plan) == 15
        assert plan[0][0].tolist() == first
        numbers = json.dumps([[batch.tolist() for batch in update] for update in plan])
        assert hashlib.sha256(numbers.encode()).hexdigest() == digest


def test_the_windows_of_an_epoch_are_drawn_apart_and_the_first_as_an_epoch_of_one_window() -> None:
    rng = np.random.default_rng(7)
    src, tgt = rng.integers(2, 60, 400), rng.integers(2, 60, 400)
    plans = [
        str(plan_epoch(TrainConfig(microbatch_tokens=300), 2, src, tgt, np.arange(400), window=window))
        for window in range(4)
    ]
    assert len(set(plans)) == 4
    assert plans[0] == str(plan_epoch(TrainConfig(microbatch_tokens=300), 2, src, tgt, np.arange(400)))


def row_by_row(order: Rows, lengths: Lengths, budget: int) -> list[list[int]]:
    """What `packed` does, as a loop over rows."""
    runs, start, longest = [], 0, 0
    for end, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if end > start and (end + 1 - start) * longest > budget:
            runs.append(order[start:end].tolist())
            start, longest = end, length
    return [*runs, order[start:].tolist()]


@settings(max_examples=300)
@given(st.lists(st.integers(0, 30), max_size=120), st.booleans(), st.integers(1, 200))
def test_rows_are_packed_as_by_a_loop_over_them(found: list[int], ascending: bool, budget: int) -> None:
    lengths = np.asarray(sorted(found) if ascending else found, dtype=np.int64)
    order = np.random.default_rng(len(found)).permutation(len(found))
    assert [run.tolist() for run in packed(order, lengths, budget)] == row_by_row(order, lengths, budget)


def test_many_rows_are_packed_as_by_a_loop_over_them() -> None:
    rng = np.random.default_rng(11)
    src = np.clip(rng.lognormal(3.0, 0.6, 50_000).astype(np.int64), 1, 200)
    tgt = np.clip((src * rng.normal(1.0, 0.2, 50_000)).astype(np.int64), 1, 200)
    order = np.lexsort((src, tgt))
    lengths = np.maximum(src, tgt)[order]
    for budget in (150, 2048, 30_000):
        assert [run.tolist() for run in packed(order, lengths, budget)] == row_by_row(order, lengths, budget)


def test_lengths_beyond_16_bits_are_sorted_too() -> None:
    src = tgt = np.asarray([70_000, 3, 65_536, 2, 65_535, 70_000])
    plan = plan_epoch(TrainConfig(microbatch_tokens=140_000, max_pieces=80_000), 0, src, tgt, np.arange(6))
    batches = sorted(sorted(batch.tolist()) for update in plan for batch in update)
    assert batches == [[0, 5], [1, 3], [2, 4]]


def test_a_row_stands_as_often_in_a_plan_as_in_its_rows() -> None:
    src = tgt = np.asarray([3, 5, 4])
    rows = np.asarray([0, 0, 2, 2, 2])
    plan = plan_epoch(TrainConfig(microbatch_tokens=8), 0, src, tgt, rows)
    assert sorted(row for update in plan for batch in update for row in batch) == rows.tolist()
    assert sum(target_tokens(update, tgt) for update in plan) == 2 * 3 + 3 * 4


def test_no_rows_give_no_updates() -> None:
    lengths = np.asarray([3, 5])
    assert plan_epoch(TrainConfig(), 0, lengths, lengths, np.empty(0, dtype=np.int64)) == []


def test_padding_is_low_where_lengths_are_many() -> None:
    rng = np.random.default_rng(2)
    src = rng.integers(4, 40, 5000)
    tgt = np.maximum(1, src + rng.integers(-3, 4, 5000))
    plan = plan_epoch(TrainConfig(microbatch_tokens=2048), 0, src, tgt, trainable_rows(src, tgt, 100))
    batches = [batch for update in plan for batch in update]
    padded = sum(len(batch) * (src[batch].max() + tgt[batch].max()) for batch in batches)
    assert 1 - (src.sum() + tgt.sum()) / padded < 0.08


def test_collate_pads_on_the_right_and_shifts_the_target() -> None:
    shards = ShardColumns(
        row_id=np.arange(2),
        src=np.asarray([5, 6, 3, 7, 3], dtype=np.int32),
        src_offsets=np.asarray([0, 3, 5]),
        tgt=np.asarray([8, 3, 9, 10, 3], dtype=np.int32),
        tgt_offsets=np.asarray([0, 2, 5]),
    )
    batch = collate(shards, np.asarray([1, 0]))
    assert batch.src.tolist() == [[7, 3, PAD_ID], [5, 6, 3]]
    assert batch.src_lengths.tolist() == [2, 3]
    assert batch.target.tolist() == [[9, 10, 3], [8, 3, PAD_ID]]
    assert batch.previous.tolist() == [[BOS_ID, 9, 10], [BOS_ID, 8, 3]]
    assert batch.target_mask().tolist() == [[True, True, True], [True, True, False]]


def test_a_row_above_the_budget_is_alone() -> None:
    src = tgt = np.asarray([3, 90, 3])
    plan = plan_epoch(TrainConfig(microbatch_tokens=10, max_pieces=100), 0, src, tgt, np.arange(3))
    assert sorted(sorted(batch.tolist()) for update in plan for batch in update) == [[0, 2], [1]]


@pytest.mark.parametrize("field", ["microbatch_tokens", "microbatches_per_update", "max_pieces"])
def test_sizes_of_zero_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        TrainConfig.model_validate({field: 0})
