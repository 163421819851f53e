"""Edits of features and directions as people give them: what they do, and what they leave."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import hook_count
from support.world import HOOK, random_dictionary, save_tiny_model
from torch import Tensor

import sae
from sae.base.errors import UserError
from sae.edits.codes import Reader
from sae.interactive import Model
from sae.models.hooks import find_site, read_activations

PROMPTS = ["Note 0-1: the river ran past", "she kept seven", "rain"]
KINDS = ("standard", "jumprelu", "topk", "gated")
MODES = {
    "add": lambda f, t: f + t,
    "set": lambda f, t: torch.full_like(f, t),
    "multiply": lambda f, t: f * t,
    "at_least": lambda f, t: f.clamp_min(t),
    "cap": lambda f, t: f.clamp_max(t),
    "ablate": lambda f, t: torch.zeros_like(f),
}


@pytest.fixture(scope="module")
def m(tiny_model: Path) -> Model:
    return sae.model(str(tiny_model))


@pytest.fixture(scope="module")
def folders(m: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Dictionaries of the tiny model, one of each activation."""
    site, made = find_site(m.module, HOOK), {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("dictionaries") / kind
        d = random_dictionary(kind).placed(site)
        d = replace(d, record=replace(d.record, model=m.language_model.record))
        sae.save(d, str(folder))
        made[kind] = str(folder)
    return made


@pytest.fixture(scope="module")
def folder(folders: dict[str, str]) -> str:
    return folders["standard"]


def ids(m: Model, text: str = PROMPTS[0]) -> Tensor:
    return torch.from_numpy(m.language_model.prompt_ids(text)).long()[None]


def logits(m: Model, text: str = PROMPTS[0]) -> Tensor:
    with torch.no_grad():
        return m.module(ids(m, text)).logits[0]


def after(m: Model, *edits: Any, hook: str = HOOK) -> Tensor:
    """What stands at a hook with edits made, at each position of the first prompt."""
    with m.edited(list(edits)):
        found = read_activations(m.module, [find_site(m.module, hook)], ids(m))
    return found[hook][0]


def live(m: Model, folder: str) -> int:
    """A feature that is active somewhere in the first prompt, and not everywhere."""
    acts = m.features(PROMPTS[0], folder).acts.to_dense()[1:]
    share = (acts > 0).float().mean(0)
    return int(torch.where((share > 0.2) & (share < 0.9))[0][0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("do", MODES)
def test_a_mode_changes_the_code_and_leaves_the_error(m, folders, do, kind):
    folder, t = folders[kind], 0.7
    d, j = sae.load(folder), live(m, folder)
    x = after(m).double()
    f = d.encode(x.float()).double()
    g = f.clone()
    g[1:, j] = MODES[do](f[1:, j], t)
    expected = x + (g - f) @ d.W_dec.double()
    keys = {} if do == "ablate" else {"by": t}
    found = after(m, sae.edit(dictionary=folder, feature=j, do=do, **keys))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    error = x - (f @ d.W_dec.double())
    left = found.double() - g @ d.W_dec.double()
    torch.testing.assert_close(left, error, rtol=1e-5, atol=1e-5)
    assert do == "cap" or not torch.equal(found, x.float())


@pytest.mark.parametrize("do", ["add", "multiply", "at_least"])
def test_a_strength_of_nothing_leaves_the_logits_bit_equal(m, folder, do):
    record = sae.edit(
        dictionary=folder, feature=live(m, folder), do=do, by=1.0 if do == "multiply" else 0.0
    )
    plain = logits(m)
    with m.edited(record):
        assert torch.equal(logits(m), plain)
    with m.edited([]):
        assert torch.equal(logits(m), plain)


def test_a_gate_that_never_opens_leaves_the_logits_bit_equal(m, folder):
    plain, when = logits(m), {"feature": 3, "above": 1e9}
    for keys in (
        {"dictionary": folder, "feature": 5, "do": "set", "by": 9.0, "when": when},
        {
            "at": HOOK,
            "token": "a",
            "do": "add",
            "by": 9.0,
            "when": when | {"dictionary": folder},
        },
    ):
        with m.edited(sae.edit(**keys)):
            assert torch.equal(logits(m), plain)


@pytest.mark.parametrize("limit", ["above", "below"])
def test_a_gate_opens_where_its_feature_says(m, folder, limit):
    j, d, x = live(m, folder), sae.load(folder), after(m)
    code = d.encode(x)[:, j]
    # Between two codes, which are rounded otherwise where few are computed.
    values = code[1:].unique()
    middle = float(values[:2].mean() if limit == "below" else values[-2:].mean())
    is_open = (code > middle) if limit == "above" else (code < middle)
    when = {"feature": j, limit: middle}
    for keys in (
        {"dictionary": folder, "feature": 7, "do": "set", "by": 9.0, "when": when},
        {
            "at": HOOK,
            "token": "a",
            "do": "add",
            "by": 9.0,
            "when": when | {"dictionary": folder},
        },
    ):
        changed = (after(m, sae.edit(**keys)) != x).any(1)
        assert changed[1:].tolist() == is_open[1:].tolist()
        assert not changed[0]


def test_a_gate_may_stand_at_an_earlier_hook_and_not_at_a_later_one(m, tmp_path):
    early, late = "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"
    for hook in (early, late):
        d = random_dictionary("standard").placed(find_site(m.module, hook))
        sae.save(d, str(tmp_path / hook))
    keys = {"at": HOOK, "token": "a", "do": "add", "by": 9.0}
    x, gating = after(m), after(m, hook=early)
    is_open = sae.load(str(tmp_path / early)).encode(gating)[:, 4] > 0
    when = {"feature": 4, "above": 0.0, "dictionary": str(tmp_path / early)}
    changed = (after(m, sae.edit(**keys, when=when)) != x).any(1)
    assert changed[1:].tolist() == is_open[1:].tolist()
    with pytest.raises(UserError, match="which the model computes later"):
        after(m, sae.edit(**keys, when=when | {"dictionary": str(tmp_path / late)}))


@pytest.mark.parametrize(
    "keys",
    [{"do": "set", "by": 2.0}, {"do": "cap", "by": 0.1}, {"do": "at_least", "by": 2.0}],
)
def test_the_same_twice_is_the_same_once(m, folder, keys):
    record = sae.edit(dictionary=folder, feature=live(m, folder), **keys)
    assert torch.equal(after(m, record, record), after(m, record))


def test_the_last_of_two_settings_counts(m, folder):
    one, two = (sae.edit(dictionary=folder, feature=5, do="set", by=t) for t in (9.0, 2.0))
    assert torch.equal(after(m, one, two), after(m, two))
    assert not torch.equal(after(m, two, one), after(m, two))


def test_features_of_one_dictionary_share_one_encoding(m, folder, monkeypatch):
    calls = []
    plain = Reader.__call__
    monkeypatch.setattr(
        Reader, "__call__", lambda self, x: calls.append(len(x)) or plain(self, x)
    )
    records = [
        sae.edit(dictionary=folder, features=[3, 5], do="set", by=2.0),
        sae.edit(dictionary=folder, feature=5, do="add", by=1.0),
        sae.edit(dictionary=folder, feature=9, do="ablate", when={"feature": 3, "above": 0.0}),
    ]
    after(m, *records)
    assert calls == [ids(m).shape[1] - 1]
    calls.clear()
    after(m, records[1])
    assert calls == []


def test_two_features_exchange_their_codes(m, folder):
    d, x = sae.load(folder), after(m)
    f = d.encode(x)
    found = after(m, sae.edit(dictionary=folder, features=[3, 5], do="swap"))
    g = f.clone()
    g[1:, [3, 5]] = f[1:, [5, 3]]
    torch.testing.assert_close(found, x + (g - f) @ d.W_dec, rtol=1e-4, atol=1e-5)


def test_a_direction_is_taken_out_once_and_for_all(m, folder, tmp_path):
    import numpy as np

    v = torch.randn(32, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "v.npy", v.numpy())
    w = v / v.norm()
    given = {"direction": str(tmp_path / "v.npy"), "at": HOOK}
    for keys in (given, {"direction": v, "at": HOOK}):
        out = sae.edit(**keys, do="orthogonal")
        found = after(m, out)
        assert float((found[1:] @ w).abs().max()) < 1e-5
        torch.testing.assert_close(after(m, out, out), found, rtol=1e-5, atol=1e-5)
    x = after(m)
    p, capped = x[1:] @ w, after(m, sae.edit(**given, do="cap", by=0.0))
    torch.testing.assert_close(capped[1:] @ w, p.clamp_max(0), rtol=1e-4, atol=1e-5)
    raised = after(m, sae.edit(**given, do="threshold", by=0.5))
    torch.testing.assert_close(raised[1:] @ w, p.clamp_min(0.5), rtol=1e-4, atol=1e-5)
    # A feature stands for the direction of its decoder there.
    d = sae.load(folder).W_dec[5]
    found = after(m, sae.edit(dictionary=folder, feature=5, do="orthogonal"))
    assert float((found[1:] @ (d / d.norm())).abs().max()) < 1e-5


def test_the_direction_of_a_token_raises_its_logit(m):
    (j,) = m.language_model.text_ids("a")
    plain = logits(m)
    with m.edited(sae.edit(at="blocks.2.hook_resid_post", token="a", do="add", by=50.0)):
        shift = logits(m) - plain
    assert int(shift[-1].argmax()) == j


def test_a_head_is_taken_away_as_a_plain_hook_does_it(m):
    def without(_: Any, args: Any) -> Any:
        z = args[0].clone()
        z[:, 1:, 16:24] = 0
        return (z,)

    part = m.module.model.layers[1].self_attn.o_proj
    handle = part.register_forward_pre_hook(without)
    expected = logits(m)
    handle.remove()
    for keys in ({"do": "ablate"}, {"do": "multiply", "by": 0.0}):
        with m.edited(sae.edit(at="blocks.1.attn.hook_z", head=2, **keys)):
            assert torch.equal(logits(m), expected)


def test_gradients_reach_a_strength(m, folder):
    by = torch.tensor(0.0, requires_grad=True)
    with m.edited(sae.edit(dictionary=folder, feature=5, do="add", by=by)):
        m.module(ids(m)).logits[0, -1, 7].backward()
    slope, h = float(by.grad), 1e-2
    sides = []
    for t in (-h, h):
        with m.edited(sae.edit(dictionary=folder, feature=5, do="add", by=t)):
            sides.append(float(logits(m)[-1, 7]))
    assert slope == pytest.approx((sides[1] - sides[0]) / (2 * h), rel=0.02)
    by = torch.tensor([0.5, 1.0], requires_grad=True)
    with m.edited(sae.edit(dictionary=folder, feature=live(m, folder), do="set", by=by)):
        m.module(ids(m).expand(2, -1)).logits.sum().backward()
    assert bool((by.grad != 0).all())


def test_a_model_in_bfloat16_is_edited_in_its_own_type(m, tiny_model, folder):
    half = sae.model(str(tiny_model), dtype="bfloat16")
    j = live(m, folder)
    with half.edited(sae.edit(dictionary=folder, feature=j, do="set", by=3.0)):
        found = half.module(ids(m)).logits
    assert found.dtype == torch.bfloat16
    assert not torch.equal(found, half.module(ids(m)).logits)


def test_what_does_not_fit_the_model_is_refused_and_leaves_no_hook(
    m, folder, tmp_path, tokenizer_folder
):
    other = sae.model(
        str(save_tiny_model("llama", tmp_path / "llama", tokenizer_folder, seed=5))
    )
    good = sae.edit(dictionary=folder, feature=5, do="set", by=1.0)
    count = hook_count(m.module)
    for model, keys, words in (
        (m, {"dictionary": folder, "feature": 48, "do": "ablate"}, "has 0 to 47"),
        (m, {"dictionary": "nowhere", "feature": 1, "do": "ablate"}, "nowhere"),
        (
            m,
            {"dictionary": folder, "feature": 1, "do": "ablate", "digest": "0" * 16},
            "has the digest",
        ),
        (
            m,
            {
                "dictionary": folder,
                "feature": 1,
                "do": "ablate",
                "at": "blocks.0.hook_resid_post",
            },
            f"is at {HOOK}; leave it out",
        ),
        (
            m,
            {"at": HOOK, "head": 1, "do": "ablate"},
            "heads are only separate at hooks attn.hook_z",
        ),
        (m, {"at": "blocks.1.attn.hook_z", "head": 9, "do": "ablate"}, "heads 0 to 3"),
        (
            m,
            {"at": HOOK, "token": "a river ran", "do": "add", "by": 1.0},
            "tokens in this model",
        ),
        (m, {"at": HOOK, "direction": torch.ones(31), "do": "add", "by": 1.0}, "31 numbers"),
        (m, {"at": HOOK, "direction": "no.npy", "do": "add", "by": 1.0}, "is not a file"),
        (
            m,
            {"dictionary": folder, "feature": 1, "do": "set", "by": 1.0, "unit": "max_act"},
            "",
        ),
        (other, {"dictionary": folder, "feature": 1, "do": "ablate"}, "with weights"),
    ):
        with pytest.raises(UserError) as raised, model.edited([good, keys]):
            pass
        assert words in str(raised.value), keys
    mine = sae.Edits((good,), model_digest="0" * 16)
    with pytest.raises(UserError, match="for a model with weights 0000"), m.edited(mine):
        pass
    assert hook_count(m.module) == count
    assert "generate" not in vars(m.module)


def test_what_cannot_be_read_safely_is_no_direction(m, tmp_path):
    import pickle

    (tmp_path / "v.npy").write_bytes(b"\x93NUMPY" + pickle.dumps([1.0]))
    (tmp_path / "v.pt").write_bytes(b"")
    import numpy as np

    np.save(tmp_path / "object.npy", np.array([object()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "zero.npy", np.zeros(32, np.float32))
    np.save(tmp_path / "two.npy", np.ones((2, 32), np.float32))
    for name, words in (
        ("v.npy", "cannot be read"),
        ("object.npy", "cannot be read"),
        ("v.pt", "has an unknown ending"),
        ("zero.npy", "is not a direction"),
        ("two.npy", "give a single vector"),
    ):
        keys = {"direction": str(tmp_path / name), "at": HOOK, "do": "add", "by": 1.0}
        with pytest.raises(UserError, match=words), m.edited(keys):
            pass
