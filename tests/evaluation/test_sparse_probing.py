import numpy as np
import pytest
import torch

from sae.dictionary import Dictionary
from sae.evaluation.sparse_probing import (
    KS,
    TaskRows,
    sparse_probing,
    sparse_probing_findings,
    task_rows,
    untrained,
)
from sae.models import ModelConfig, find_site, load_model

WIDTH, TEXTS = 48, 64


def basis():
    drawn = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))
    return torch.linalg.qr(drawn)[0]


def task(name, direction, seed, strength=4.0):
    """Half of the rows have more of one direction."""
    generator = torch.Generator().manual_seed(seed)
    labels = np.arange(2 * TEXTS) % 2 == 0
    x = torch.randn(2 * TEXTS, WIDTH, generator=generator)
    x[torch.from_numpy(labels)] += strength * direction
    return TaskRows(name, x[:TEXTS], labels[:TEXTS], x[TEXTS:], labels[TEXTS:])


def with_features(directions):
    zero = torch.zeros(len(directions))
    return Dictionary.from_weights(directions.t(), zero, directions, torch.zeros(WIDTH))


def test_one_feature_that_is_the_answer_is_enough():
    directions = basis()
    tasks = [task("a", directions[3], 0), task("b", directions[7], 1)]
    found = sparse_probing(with_features(directions), tasks)
    findings = {one.of or one.key: one for one in sparse_probing_findings(found)}
    assert findings["k=1"].value > 0.9
    assert findings["k=1"].value > findings["k=1"].floor + 0.1
    assert findings["k=1"].beats_floor
    assert findings["k=1"].n == 2 * TEXTS
    assert set(found.features) == set(KS)
    assert findings["sparse_probing_raw"].floor == 0.5
    assert findings["sparse_probing_raw"].value > 0.9


def test_labels_that_mean_nothing_are_at_chance():
    tasks = [task(str(seed), basis()[0], seed, strength=0.0) for seed in range(4)]
    for one in sparse_probing_findings(sparse_probing(with_features(basis()), tasks)):
        assert one.low < 0.5 < one.high or one.value == pytest.approx(0.5, abs=0.08)


def test_all_features_of_an_identity_are_probed_like_activations():
    # Of both signs, so that nothing is lost: as many features as are asked for are all.
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    tasks = [task("a", basis()[3], 0)]
    found = sparse_probing(with_features(both), tasks, ks=(2 * WIDTH,))
    (features,), (raw,) = found.features[2 * WIDTH], found.raw
    assert features.accuracy == pytest.approx(raw.accuracy, abs=0.08)


def test_the_floor_has_as_many_features_and_as_many_active():
    dictionary = with_features(basis())
    x = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(2)) + 3
    random = untrained(dictionary, x, 0)
    assert random.d_sae == dictionary.d_sae
    l0 = [(one.encode(x) > 0).sum(1).double().mean() for one in (random, dictionary)]
    assert float(l0[0]) == pytest.approx(float(l0[1]), abs=1)


def test_texts_of_the_wheel_are_read_by_the_seed(tiny_model):
    model = load_model(ModelConfig(name=str(tiny_model), device="cpu"))
    site = find_site(model.module, "blocks.1.hook_resid_post")
    (one,), (again,) = (task_rows(model, site, ["105_click_bait"], seed=3) for _ in range(2))
    assert one.train.shape == one.test.shape == (TEXTS, 32)
    assert one.train_labels.sum() == one.test_labels.sum() == TEXTS // 2
    torch.testing.assert_close(one.train, again.train, rtol=0, atol=0)
