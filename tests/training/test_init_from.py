"""Training that begins with a finished dictionary: how its weights come back, and refusals."""

from dataclasses import replace

import pytest
import torch

from sae.architectures import ARCHITECTURES, TrainableSAE
from sae.architectures.jumprelu import JumpReLUSAE
from sae.architectures.topk import THRESHOLD_DECAY
from sae.base.errors import UserError
from sae.core.scaling import InputScaling
from sae.dictionary import TopK
from sae.dictionary.files import load_dictionary, save_dictionary

D_IN, D_OUT, D_SAE = 12, 9, 40
DEAD = torch.zeros(D_SAE, dtype=torch.bool)
CASES = {
    "standard": ("standard", {}),
    "standard, unit norm": ("standard", {"decoder_norm": "unit"}),
    "standard, aligned": ("standard", {"aligned": True}),
    "p_anneal": ("p_anneal", {}),
    "gated": ("gated", {}),
    "gated, aligned": ("gated", {"aligned": True}),
    "topk": ("topk", {"k": 4}),
    "topk, aligned": ("topk", {"k": 4, "aligned": True}),
    "batchtopk": ("batchtopk", {"k": 4}),
    "matryoshka": ("matryoshka_batchtopk", {"k": 4}),
    "jumprelu": ("jumprelu", {}),
    "jumprelu, aligned": ("jumprelu", {"aligned": True}),
}
MEANS = {n: 30 * torch.linspace(-1, 1.3, n).sin() for n in (D_IN, D_OUT)}


def rows(n=400, seed=0, width=D_IN):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def fresh(name, settings, d_out=None, seed=1):
    """An autoencoder that was just built; with `d_out` a transcoder."""
    target = None if d_out is None else rows(seed=3, width=d_out)
    goal = {"target_l0": 5.0} if name == "jumprelu" else {}
    config = ARCHITECTURES[name](**{"d_sae": D_SAE, **goal, **settings})
    return config.build(rows(), torch.Generator().manual_seed(seed), target)


def moved(sae, seed=5):
    """The same one after something like training, with thresholds of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        if sae.unit_norm_decoder:
            sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=1))
    sae.after_update()
    if "batchtopk" in sae.config.architecture:
        sae.step(rows(50), rows(50, width=len(sae.b_dec)), 0.0, DEAD)
    return sae


def scalings(d_out, scale=0.05, out_scale=7.0):
    if d_out is None:
        return [InputScaling(MEANS[D_IN], scale)] * 2
    return [InputScaling(MEANS[D_IN], scale), InputScaling(MEANS[d_out], out_scale)]


def doubled(dictionary):
    return dictionary.with_weights({n: w.double() for n, w in dictionary.tensors.items()})


def raw_rows(scaling, n=2000, seed=8):
    x = rows(n, seed, len(scaling.mean)).double()
    return x / scaling.scale + scaling.mean.double()


def assert_does_the_same(found, given, x, gain=1.0, tolerance=1e-6):
    """Equal latents fire, their activations are `gain`-fold, the output is equal.

    In float64, so that what differs is the rounding of weights and nothing else; the tolerance
    is a share of the largest activation and of the outputs' spread.
    """
    found, given = doubled(found), doubled(given)
    expected, acts = given.encode(x) * gain, found.encode(x)
    assert 0.02 < (expected > 0).double().mean() < 0.9
    assert torch.equal(acts > 0, expected > 0)
    assert (acts - expected).abs().max() < tolerance * expected.max()
    y, y_hat = given(x), found(x)
    assert (y_hat - y).abs().max() < tolerance * (y - y.mean(0)).abs().max()


@pytest.mark.parametrize("kind", ["autoencoder", "transcoder", "skip"])
@pytest.mark.parametrize("case", CASES)
def test_what_begins_with_a_dictionary_is_saved_as_one_that_does_the_same(case, kind):
    name, settings = CASES[case]
    aligned = settings.get("aligned", False)
    d_out = None if kind == "autoencoder" else D_IN if aligned else D_OUT
    settings = {**settings, "skip_connection": kind == "skip"}
    scaling, output = scalings(d_out)
    given = moved(fresh(name, settings, d_out)).dictionary(scaling, output)
    sae = fresh(name, settings, d_out, seed=2)
    assert not torch.allclose(sae.dictionary(scaling, output).W_dec, given.W_dec)
    sae.begin_with(given, scaling, output)
    found = sae.dictionary(scaling, output)
    assert found.activation.numbers == given.activation.numbers
    assert_does_the_same(found, given, raw_rows(scaling))


@pytest.mark.parametrize("case", CASES)
def test_another_scaling_than_that_of_the_first_training_is_none_for_what_is_saved(case):
    name, settings = CASES[case]
    given = moved(fresh(name, settings)).dictionary(*scalings(None, scale=0.05))
    scaling = InputScaling(MEANS[D_IN] + 3, 0.2)
    sae = fresh(name, settings, seed=2)
    sae.begin_with(given, scaling, scaling)
    x = raw_rows(scalings(None)[0])
    assert_does_the_same(sae.dictionary(scaling, scaling), given, x)


@pytest.mark.parametrize("case", ["standard", "standard, unit norm", "gated", "jumprelu"])
def test_decoder_norms_move_into_the_encoder(case):
    name, settings = CASES[case]
    scaling, output = scalings(D_OUT)
    given = moved(fresh(name, settings, D_OUT)).dictionary(scaling, output)
    norms = torch.linspace(0.1, 3, D_SAE)
    given = given.with_weights({"W_dec": given.W_dec * norms[:, None]})
    sae = fresh(name, settings, D_OUT, seed=2)
    sae.begin_with(given, scaling, output)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    gain = given.W_dec.double().norm(dim=1)
    assert gain.max() > 10 * gain.min()
    assert_does_the_same(sae.dictionary(scaling, output), given, raw_rows(scaling), gain)


@pytest.mark.parametrize("case", ["standard", "p_anneal", "gated", "topk", "jumprelu"])
def test_the_first_step_has_the_error_of_the_dictionary(case):
    name, settings = CASES[case]
    scaling, output = scalings(D_OUT)
    settings = {**settings, "skip_connection": True}
    given = moved(fresh(name, settings, D_OUT)).dictionary(scaling, output)
    sae = fresh(name, settings, D_OUT, seed=2)
    sae.begin_with(given, scaling, output)
    x, y = raw_rows(scaling, 64), raw_rows(output, 64, seed=9)
    error = (doubled(given)(x) - y).square().sum(1).mean() * output.scale**2
    step = sae.step(scaling(x.float()), output(y.float()), 0.0, DEAD)
    torch.testing.assert_close(step.mse.double(), error, rtol=1e-5, atol=0)
    assert torch.equal(step.fired.long(), (doubled(given).encode(x) > 0).sum(0))


@pytest.mark.parametrize("name", ["standard", "gated", "jumprelu"])
def test_a_latent_that_adds_nothing_stops_firing_and_keeps_a_direction(name):
    settings = {"decoder_norm": "unit"} if name == "standard" else {}
    scaling, output = scalings(None)
    given = moved(fresh(name, settings)).dictionary(scaling, output)
    given.W_dec[7] = 0
    sae = fresh(name, settings, seed=2)
    sae.begin_with(given, scaling, output)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    gain = given.W_dec.double().norm(dim=1)
    assert_does_the_same(sae.dictionary(scaling, output), given, raw_rows(scaling), gain)


def test_a_latent_that_a_topk_dictionary_never_uses_needs_no_norm():
    scaling, output = scalings(None)
    given = moved(fresh("topk", {"k": 4})).dictionary(scaling, output)
    for weights in (given.W_enc.t(), given.b_enc, given.W_dec):
        weights[7] = 0
    sae = fresh("topk", {"k": 4}, seed=2)
    sae.begin_with(given, scaling, output)
    assert_does_the_same(sae.dictionary(scaling, output), given, raw_rows(scaling))


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka_batchtopk"])
def test_the_running_threshold_goes_on_from_the_dictionarys(name):
    scaling, output = scalings(None)
    given = moved(fresh(name, {"k": 4})).dictionary(scaling, output)
    sae = fresh(name, {"k": 4}, seed=2)
    sae.begin_with(given, scaling, output)
    before = float(sae.threshold)
    assert before == pytest.approx(
        float(given.activation.threshold[0]) * output.scale, rel=1e-6
    )
    x = 3 * rows(50)
    z = (x @ sae.encoder().t() + sae.b_enc).detach()
    least = float(z.flatten().topk(4 * len(x)).values[-1])
    sae.step(x, x, 0.0, DEAD)
    expected = THRESHOLD_DECAY * before + (1 - THRESHOLD_DECAY) * least
    assert abs(least - before) > 0.1
    assert float(sae.threshold) == pytest.approx(expected, rel=1e-5)


def test_a_batchtopk_dictionary_can_go_on_as_a_jumprelu():
    scaling, output = scalings(None)
    given = moved(fresh("batchtopk", {"k": 4})).dictionary(scaling, output)
    sae = fresh("jumprelu", {}, seed=2)
    sae.begin_with(given, scaling, output)
    assert_does_the_same(sae.dictionary(scaling, output), given, raw_rows(scaling))


def test_another_k_than_the_dictionarys_is_the_configurations():
    scaling, output = scalings(None)
    given = moved(fresh("topk", {"k": 4})).dictionary(scaling, output)
    sae = fresh("topk", {"k": 3}, seed=2)
    sae.begin_with(given, scaling, output)
    found = sae.dictionary(scaling, output)
    assert_does_the_same(found, replace(given, activation=TopK(3)), raw_rows(scaling))


def of(name, settings=None, d_out=None, **changes):
    """A dictionary in our folder's words, with weights changed."""
    sae = moved(fresh(name, settings or {}, d_out))
    return sae.dictionary(*scalings(d_out)).with_weights(changes)


SPREAD = torch.linspace(1, 2, D_SAE)
REFUSED = {
    "activation": (
        ("standard", {}),
        lambda: of("gated"),
        "has architecture gated, but sae=standard makes a standard one; give sae=gated",
    ),
    "number of latents": (
        ("gated", {"d_sae": 41}),
        lambda: of("gated"),
        r"has 40 latents, but sae\.d_sae=41; give sae\.d_sae=40",
    ),
    "input": (
        ("standard", {}),
        lambda: of("standard", W_enc=torch.ones(7, D_SAE)),
        "has width 7 where it reads, but hook_name's activations have 12; give the hook_name",
    ),
    "output": (
        ("standard", {}),
        lambda: of("standard", d_out=D_OUT),
        "has width 9 where it reconstructs, but hook_name_out's activations have 12; ",
    ),
    "a skip connection": (
        ("standard", {}),
        lambda: of("standard", W_skip=torch.ones(D_IN, D_IN)),
        r"has a skip connection, but sae\.skip_connection=False; give sae\.skip_connection=Tr",
    ),
    "no skip connection": (
        ("standard", {"skip_connection": True}),
        lambda: of("standard"),
        r"has no skip connection, but sae\.skip_connection=True; give sae\.skip_connection=Fa",
    ),
    "a decoder of zeros": (
        ("batchtopk", {"k": 4}),
        lambda: of("batchtopk", {"k": 4}, W_dec=torch.zeros(D_SAE, D_IN)),
        "has only zeros in W_dec",
    ),
    "thresholds of their own": (
        ("batchtopk", {"k": 4}),
        lambda: of("batchtopk", {"k": 4}, threshold=SPREAD),
        "has thresholds from 0.05 to 0.1, but sae=batchtopk has one for all latents; give sae=",
    ),
    "norms of their own": (
        ("topk", {"k": 4}),
        lambda: of("topk", {"k": 4}, W_dec=rows(D_SAE, 3) * SPREAD[:, None]),
        "has decoder rows whose norms differ up to .* but sae=topk ranks latents by the length",
    ),
    "directions that are not aligned": (
        ("standard", {"aligned": True}),
        lambda: of("standard"),
        r"inner products from .*, but sae\.aligned=True keeps them at one; give sae\.aligned=F",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_dictionary_that_does_not_fit_is_refused_and_nothing_is_taken_of_it(case):
    (name, settings), given, sentence = REFUSED[case]
    sae = fresh(name, settings, seed=2)
    before = {n: t.clone() for n, t in sae.state_dict().items() if isinstance(t, torch.Tensor)}
    with pytest.raises(UserError, match=f"^the dictionary of init_from has .*{sentence[4:]}"):
        sae.begin_with(given(), *scalings(None))
    for n, t in before.items():
        assert torch.equal(t, sae.state_dict()[n]), n


def test_an_architecture_that_takes_nothing_over_begins_with_no_dictionary_that_has_more():
    class Silent(JumpReLUSAE):
        take_activation = TrainableSAE.take_activation

    sae = Silent(
        ARCHITECTURES["jumprelu"](d_sae=D_SAE, target_l0=5.0), rows(), torch.Generator()
    )
    with pytest.raises(UserError, match="has a threshold that sae=jumprelu cannot use"):
        sae.begin_with(of("jumprelu"), *scalings(None))


def test_a_dictionary_in_half_precision_is_near_enough_to_equal_norms_and_thresholds():
    for name in ("topk", "batchtopk"):
        given = of(name, {"k": 4})
        stored = {n: w.bfloat16().float() for n, w in given.tensors.items()}
        sae = fresh(name, {"k": 4}, seed=2)
        sae.begin_with(given.with_weights(stored), *scalings(None))


def saelens_kinds():
    """Name in SAELens, settings of its configuration, ours that fits."""
    for settings in ({"apply_b_dec_to_input": True}, {"apply_b_dec_to_input": False}):
        yield "standard", settings, ("standard", {})
        yield "standard", settings, ("p_anneal", {"decoder_norm": "unit"})
        yield "jumprelu", settings, ("jumprelu", {})
        yield "gated", settings, ("gated", {})
        topk = {**settings, "k": 4, "rescale_acts_by_decoder_norm": True}
        yield "topk", topk, ("topk", {"k": 4})
        yield "batchtopk", {**topk, "k": 4.0}, ("batchtopk", {"k": 4})
    plain = {"apply_b_dec_to_input": False, "d_out": D_OUT}
    yield "transcoder", plain, ("standard", {})
    yield "skip_transcoder", plain, ("standard", {"skip_connection": True})
    yield "jumprelu_transcoder", plain, ("jumprelu", {})


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", list(saelens_kinds()), ids=str)
def test_a_folder_of_saelens_is_gone_on_with_and_saved_as_the_same(kind, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.registry import get_sae_class, get_sae_training_class

    name, settings, (ours, our_settings) = kind
    get_class = get_sae_training_class if name == "batchtopk" else get_sae_class
    sae_class, config_class = get_class(name)
    theirs = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, **settings))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    if name == "batchtopk":
        theirs.topk_threshold.fill_(0.8)
        theirs.save_inference_model(tmp_path / "theirs")
    else:
        theirs.save_model(tmp_path / "theirs")
    given = load_dictionary(tmp_path / "theirs")
    scaling, output = scalings(settings.get("d_out"), scale=0.5)
    scaling = InputScaling(scaling.mean / 30, scaling.scale)
    sae = fresh(ours, our_settings, settings.get("d_out"), seed=2)
    sae.begin_with(given, scaling, output)
    found = sae.dictionary(scaling, output)
    x = raw_rows(scaling)
    assert_does_the_same(found, given, x, given.W_dec.double().norm(dim=1))
    # And what is saved again does in SAELens what theirs did.
    save_dictionary(found, tmp_path / "ours")
    again = sae_lens.SAE.load_from_disk(str(tmp_path / "ours"))
    first = sae_lens.SAE.load_from_disk(str(tmp_path / "theirs"))
    with torch.no_grad():
        torch.testing.assert_close(again(x.float()), first(x.float()), rtol=1e-4, atol=1e-4)
