"""The attention probe: mean pooling where it looks at nothing, and it learns where to look."""

import numpy as np
import torch

from sae.classifiers import auc_of
from sae.probing.attention import AttentionProbe, TokenRows, fit_attention


def tokens(n, seed=0, width=12, d=8):
    """Texts of any length; what tells the label is one token, whose first entry marks it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, d, generator=generator)
    lengths = torch.randint(3, width + 1, (n,), generator=generator)
    own = torch.arange(width) < lengths[:, None]
    labels = np.arange(n) % 2 == 0
    where = torch.randint(0, width, (n,), generator=generator) % lengths
    x[torch.arange(n), where, 0] = 8.0
    x[torch.arange(n), where, 1] = torch.where(torch.from_numpy(labels), 2.0, -2.0)
    return TokenRows(x, own), labels


def test_without_a_place_to_look_at_it_is_a_probe_of_the_mean():
    rows, _ = tokens(20)
    probe = AttentionProbe(8, n_heads=3, seed=1)
    with torch.no_grad():
        probe.v.normal_(generator=torch.Generator().manual_seed(2))
        probe.b.fill_(0.5)
        means = torch.stack([x[own].mean(0) for x, own in zip(rows.x, rows.own, strict=True)])
        expected = (means @ probe.v).sum(1) + 0.5
        torch.testing.assert_close(probe(rows.x, rows.own), expected)


def test_padding_is_never_looked_at():
    rows, _ = tokens(20)
    probe = AttentionProbe(8, seed=1)
    with torch.no_grad():
        probe.q.normal_(generator=torch.Generator().manual_seed(2))
        before = probe(rows.x, rows.own)
        noisy = torch.where(rows.own[:, :, None], rows.x, 1e3)
        torch.testing.assert_close(probe(noisy, rows.own), before)


def test_the_slope_moves_attention_along_the_text():
    x, own = torch.zeros(1, 4, 2), torch.ones(1, 4, dtype=torch.bool)
    x[0, :, 0] = torch.arange(4.0)
    probe = AttentionProbe(2)
    with torch.no_grad():
        probe.v.copy_(torch.tensor([[1.0], [0.0]]))
        probe.slope.fill_(30.0)
        assert float(probe(x, own)) > 2.99
        probe.slope.fill_(-30.0)
        assert float(probe(x, own)) < 0.01


def test_it_finds_the_token_that_tells_where_the_mean_hardly_does():
    rows, labels = tokens(240)
    fitted = fit_attention(rows.of(np.arange(160)), labels[:160])
    rest = rows.of(np.arange(160, 240))
    assert auc_of(fitted.logits(rest), labels[160:]) > 0.95
    assert fitted.validation_auc > 0.9
