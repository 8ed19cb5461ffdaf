"""The laws of samplers, over every row of the table."""

from __future__ import annotations

import json

import pytest
import torch
from contracts.sampling_cases import BAD, ROWS
from torch.utils.data import DataLoader, DistributedSampler

import firstlight.sampling as room

SAMPLERS = {name: row.sampler for name, row in ROWS.items() if row.sampler is not None}
EACH = pytest.mark.parametrize("name", SAMPLERS)


def test_every_public_name_has_a_row():
    assert set(ROWS) == set(room.__all__)
    assert all((row.sampler is None) != (row.competence is None) for row in ROWS.values())


@pytest.mark.parametrize(("make", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def epochs(sampler, count: int) -> list[list[int]]:
    return [list(sampler) for _ in range(count)]


@EACH
def test_the_order_is_a_function_of_seed_and_epoch(name):
    build = SAMPLERS[name]
    whole = epochs(build(23, seed=1), 3)
    assert whole == epochs(build(23, seed=1), 3)
    torch.manual_seed(99)
    later = build(23, seed=1)
    later.set_epoch(2)
    assert list(later) == whole[2]
    assert whole[0] != whole[1]
    assert epochs(build(23, seed=2), 1)[0] != whole[0]
    assert epochs(build(23, seed=2), 1)[0] != whole[1], "not seed + epoch"


@EACH
def test_no_global_generator_is_used(name):
    before = torch.random.get_rng_state()
    epochs(SAMPLERS[name](11), 2)
    assert torch.equal(before, torch.random.get_rng_state())


@EACH
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_ranks_share_one_order_and_draw_equally_often(name, ranks):
    """Dealt out like cards; filled up from the start of the order, also where there are more ranks than samples."""
    for size in (1, 5, 12, 23):
        for epoch in (0, 5):
            shares = []
            for rank in range(ranks):
                sampler = SAMPLERS[name](size, num_replicas=ranks, rank=rank)
                sampler.set_epoch(epoch)
                shares.append(list(sampler))
                assert len(shares[-1]) == len(sampler) == -(-size // ranks)
            alone = SAMPLERS[name](size)
            alone.set_epoch(epoch)
            dealt = [index for turn in zip(*shares, strict=True) for index in turn]
            order = list(alone)
            assert dealt[:size] == order
            assert dealt[size:] == (order * ranks)[: len(dealt) - size]


@EACH
def test_at_full_competence_each_sample_comes_once(name):
    sampler = SAMPLERS[name](23)
    sampler.set_epoch(6)
    assert sorted(sampler) == list(range(23))


@EACH
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_stopped_anywhere_and_resumed_is_unbroken(name, ranks):
    """In any of two epochs, at any sample; the state survives JSON."""
    build = SAMPLERS[name]
    for rank in range(ranks):
        unbroken = [i for epoch in epochs(build(11, num_replicas=ranks, rank=rank), 4) for i in epoch]
        length = -(-11 // ranks)
        for stop in range(2 * length + 1):
            first = build(11, num_replicas=ranks, rank=rank)
            drawn = []
            while len(drawn) < stop:
                for index in first:
                    drawn.append(index)
                    if len(drawn) == stop:
                        break
            state = json.loads(json.dumps(first.state_dict()))
            second = build(11, num_replicas=ranks, rank=rank)
            second.load_state_dict(state)
            while len(drawn) < 4 * length:
                drawn.extend(second)
            assert drawn == unbroken


@EACH
@pytest.mark.parametrize("place", [10, 12])
def test_a_state_from_the_end_of_an_epoch_begins_the_next_one(name, place):
    """At once, with no empty epoch between; the padding of the last batch may have counted."""
    whole = epochs(SAMPLERS[name](10), 2)
    sampler = SAMPLERS[name](10)
    sampler.load_state_dict({"seed": 0, "epoch": 0, "place": place, "size": 10})
    assert list(sampler) == whole[1]


@EACH
def test_resumed_on_another_number_of_ranks_no_sample_is_lost(name):
    order = list(SAMPLERS[name](23))
    for before, after in ((1, 2), (2, 1), (2, 3), (3, 2), (1, 4)):
        running = [SAMPLERS[name](23, num_replicas=before, rank=rank) for rank in range(before)]
        iterators = [iter(sampler) for sampler in running]
        gone = [next(iterator) for _ in range(4) for iterator in iterators]
        assert gone == order[: 4 * before]
        shares = []
        for rank in range(after):
            sampler = SAMPLERS[name](23, num_replicas=after, rank=rank)
            sampler.load_state_dict(running[0].state_dict())
            shares.append(list(sampler))
        assert len({len(share) for share in shares}) == 1
        dealt = [index for turn in zip(*shares, strict=True) for index in turn]
        assert dealt[: 23 - len(gone)] == order[len(gone) :]


@EACH
def test_a_loader_with_workers_resumes_by_what_was_trained_on(name):
    """Workers draw ahead: the state takes the number of samples that the training has seen."""
    data = torch.arange(40)

    def loader(sampler, workers):
        return DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers)

    unbroken = [batch.tolist() for batch in loader(SAMPLERS[name](40), 0)]
    sampler = SAMPLERS[name](40)
    batches = iter(loader(sampler, 2))
    trained = [next(batches).tolist() for _ in range(3)]
    assert sampler.state_dict()["place"] > 12
    state = sampler.state_dict(consumed=12)
    del batches
    second = SAMPLERS[name](40)
    second.load_state_dict(state)
    trained += [batch.tolist() for batch in loader(second, 0)]
    assert trained == unbroken


@EACH
def test_the_length_is_that_of_a_whole_epoch(name):
    """Before, during and after a resume: a Trainer reads it once."""
    sampler = SAMPLERS[name](10, num_replicas=2, rank=1)
    assert len(sampler) == 5
    sampler.load_state_dict({"seed": 0, "epoch": 1, "place": 4, "size": 10})
    assert len(sampler) == 5
    assert len(list(sampler)) == 3
    assert len(list(sampler)) == 5


@EACH
def test_setting_the_epoch_again_keeps_the_place_and_another_one_forgets_it(name):
    state = {"seed": 0, "epoch": 1, "place": 4, "size": 10}
    whole = epochs(SAMPLERS[name](10), 3)
    sampler = SAMPLERS[name](10)
    sampler.load_state_dict(state)
    sampler.set_epoch(1)  # as a Trainer does at the start of the epoch that it resumes
    assert list(sampler) == whole[1][4:]
    sampler.load_state_dict(state)
    sampler.set_epoch(2)
    assert list(sampler) == whole[2]
    sampler.set_epoch(2)  # the same epoch asked for again, after its end: once more from the start
    assert list(sampler) == whole[2]


@EACH
def test_lightning_takes_it_for_its_own(name):
    """It shards a DistributedSampler no second time."""
    assert isinstance(SAMPLERS[name](3), DistributedSampler)


@EACH
def test_outside_a_process_group_there_is_one_rank(name):
    sampler = SAMPLERS[name](3)
    assert (sampler.num_replicas, sampler.rank) == (1, 0)
