from dataclasses import replace

import pytest
import torch

from sae.core.matching import greedy_match, match_directions
from sae.core.nulls import correlated_directions
from sae.dictionary import Dictionary, save_dictionary
from sae.dictionary.record import TrainingRecord
from sae.evaluation.stability import alive, chance, compare, reseeded, stability
from sae.run import Run

WIDTH, LATENTS = 24, 60


def some_rows(n: int = 800, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, WIDTH, generator=generator) * torch.linspace(2, 0.2, WIDTH)


def random_dictionary(seed: int, latents: int = LATENTS) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randn(WIDTH, latents, generator=generator)
    decoder = encoder.t() + 0.3 * torch.randn(latents, WIDTH, generator=generator)
    return Dictionary.from_weights(encoder, torch.zeros(latents), decoder, torch.zeros(WIDTH))


def permuted(dictionary: Dictionary, flipped: bool = False) -> Dictionary:
    order = torch.randperm(dictionary.d_sae, generator=torch.Generator().manual_seed(9))
    signs = torch.ones(dictionary.d_sae, 1)
    signs[::2] = -1 if flipped else 1
    return dictionary.with_weights(
        {
            "W_enc": (dictionary.W_enc.t()[order] * signs).t(),
            "W_dec": dictionary.W_dec[order] * signs,
            "b_enc": dictionary.b_enc[order],
        }
    )


@pytest.mark.parametrize("flipped", [False, True])
def test_a_permuted_and_flipped_dictionary_agrees_wholly(flipped):
    dictionary = random_dictionary(0)
    findings, per_feature = stability(
        dictionary, {"other": permuted(dictionary, flipped)}, some_rows()
    )
    assert [round(one.value, 6) for one in findings] == [1, 1, 1]
    assert all(one.beats_floor and one.of == "other" for one in findings)
    torch.testing.assert_close(per_feature, torch.ones(LATENTS))


def test_unrelated_dictionaries_are_at_the_floor():
    rows = some_rows(4_000)
    first, second = (correlated_directions(LATENTS, rows, seed) for seed in (5, 6))
    zero, none = torch.zeros(LATENTS), torch.zeros(WIDTH)
    both = [Dictionary.from_weights(one.t(), zero, one, none) for one in (first, second)]
    findings, _ = stability(both[0], {"other": both[1]}, rows)
    assert findings[0].value == pytest.approx(findings[0].floor, abs=0.06)
    assert findings[1].value < 0.1


def test_first_directions_share_what_rows_have_in_common():
    # All rows near one direction: what two trainings begin with is alike before any learning.
    generator = torch.Generator().manual_seed(3)
    clusters = torch.randn(3, WIDTH, generator=generator)
    rows = clusters[torch.randint(3, (2_000,), generator=generator)]
    rows = rows + 0.01 * torch.randn(2_000, WIDTH, generator=generator)
    assert chance(40, rows).mean > chance(40, torch.randn(2_000, WIDTH)).mean + 0.05


def test_dead_features_are_left_out_and_have_no_stability():
    dictionary, rows = random_dictionary(0), some_rows()
    bias = dictionary.b_enc.clone()
    bias[:10] = -1e6
    dead = dictionary.with_weights({"b_enc": bias})
    assert alive(dead, rows).sum() == LATENTS - 10
    findings, per_feature = stability(dead, {"other": permuted(dictionary)}, rows)
    assert per_feature[:10].isnan().all()
    assert not per_feature[10:].isnan().any()
    assert findings[0].n == LATENTS - 10


def test_a_feature_without_any_left_for_it_counts_as_not_found():
    dictionary, rows = random_dictionary(0), some_rows()
    fewer = dictionary.of_latents(torch.arange(20))
    found = compare(dictionary, fewer, alive(dictionary, rows), alive(fewer, rows))
    assert found.decoder[:20].min() == pytest.approx(1, abs=1e-6)
    assert (found.decoder[20:] == 0).all()


def test_without_a_second_seed_there_is_no_figure_and_it_is_said_why():
    findings, per_feature = stability(random_dictionary(0), {}, some_rows())
    assert all(one.value is None and "another seed" in one.why_not for one in findings)
    assert per_feature.isnan().all()


def test_the_greedy_match_takes_the_nearest_pair_first():
    first, second = (random_dictionary(seed, 40).W_dec for seed in (1, 2))
    greedy, best = greedy_match(first, second), match_directions(first, second)
    assert sorted(greedy.second.tolist()) == list(range(40))
    assert greedy.mean <= best.mean + 1e-9
    similarity = (
        torch.nn.functional.normalize(first) @ torch.nn.functional.normalize(second).t()
    )
    similarity, expected = similarity.abs(), {}
    for _ in range(40):
        row, column = divmod(int(similarity.argmax()), 40)
        expected[row] = column
        similarity[row], similarity[:, column] = -1, -1
    assert dict(zip(greedy.first.tolist(), greedy.second.tolist(), strict=True)) == expected


def training(seed: int, **settings: object) -> TrainingRecord:
    identity = {"seed": seed, "shuffle_seed": seed, "sae.d_sae": LATENTS, **settings}
    return TrainingRecord(
        digest=f"{seed}{settings}",
        identity=identity,
        architecture="standard",
        sae={},
        optim={},
        training_tokens=1,
        train_batch_size_tokens=1,
        seed=seed,
        versions={"sae-atlas": "0"},
    )


def test_other_seeds_of_the_same_training_are_found_and_nothing_else(tmp_path):
    run = Run.at(tmp_path / "run")
    trainings = {
        "one": training(1),
        "other": training(2),
        "again": training(1),
        "stronger": training(3, **{"sae.l1_coefficient": 9}),
        "foreign": None,
    }
    for name, record in trainings.items():
        dictionary = random_dictionary(0)
        found = replace(dictionary, record=replace(dictionary.record, training=record))
        save_dictionary(found, run.dictionary(name))
    for name, others in (("one", {"other"}), ("foreign", set())):
        assert reseeded(run, *run.load(name)).keys() == others
