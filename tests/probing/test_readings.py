"""Features as probes read them, and the dictionary that nothing has trained."""

import numpy as np
import pytest
import torch
from support.world import HOOK, random_dictionary

import sae
from sae.classifiers import fit_logistic_path, fit_sparse
from sae.dictionary import Dictionary
from sae.models import find_site, load_model
from sae.probing.readings import random_control
from sae.rows.pooled import tokenized_texts
from sae.text.labelled import labelled_texts


def test_features_of_an_identity_dictionary_are_probed_like_raw_activations():
    generator = np.random.default_rng(0)
    rows, labels = generator.normal(size=(80, 16)), generator.random(80) > 0.5
    rows[:, 3] += 2 * labels
    eye = torch.eye(16).double()
    # So far from 0 that the ReLU changes nothing.
    made = Dictionary.from_weights(eye, torch.full((16,), 50.0).double(), eye, eye[0])
    features = made.encode(torch.from_numpy(rows)).numpy()
    raw = fit_logistic_path(rows, labels, per_column=False)
    found = fit_sparse(features, labels, None, per_column=False)
    assert found.probe.penalty == raw.penalty
    np.testing.assert_allclose(found.logits(features), raw.logits(rows), rtol=1e-6, atol=1e-8)


def test_the_control_has_the_same_shape_and_sparsity_and_nothing_trained(tiny_model):
    model = load_model(sae.ModelConfig(name=str(tiny_model), device="cpu"))
    texts = tokenized_texts(model, labelled_texts("noun-or-verb", "", ""), 64).texts
    dictionary, site = random_dictionary(d_sae=96), find_site(model.module, HOOK)
    found = random_control(dictionary, model, site, texts, seed=1)
    made = found.dictionary
    assert (made.d_in, made.d_sae) == (dictionary.d_in, dictionary.d_sae)
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(96))
    torch.testing.assert_close(made.W_enc, made.W_dec.t())
    assert made.activation.k == max(1, round(found.l0))
    same = random_control(dictionary, model, site, texts, seed=1)
    assert same.dictionary.digest == made.digest
    assert (
        random_control(dictionary, model, site, texts, seed=2).dictionary.digest != made.digest
    )
    acts = made.encode(torch.randn(50, 32) * 3 + made.b_dec)
    assert float((acts > 0).sum(1).float().mean()) == pytest.approx(made.activation.k, rel=0.1)


def test_every_column_of_the_table_is_explained():
    from pathlib import Path

    from sae.probing.table import PROBES

    page = (Path(__file__).parents[2] / "docs" / "probes.md").read_text(encoding="utf-8")
    for column in PROBES.columns.values():
        assert f"| `{column.name}` | {column.meaning} |" in page
