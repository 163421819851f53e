"""Patchscopes: where a vector is put, what it changes and leaves, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.families import hook_count
from support.world import HOOK, random_dictionary, save_tiny_model

import sae
from sae.base.errors import UserError
from sae.cli import main
from sae.edits import edited
from sae.interactive import Model
from sae.lenses.patchscope import Question, answers, placed, put, source_of, typical_norm
from sae.models import find_site, read_activations
from sae.models.resume import resume
from sae.writing import Sampling, generate

PROMPT = "the river ran past old mill x where she kept"
TEXT = "seven grey cats and one very small dog"
ASK = Question(prompt=PROMPT, placeholder="x", max_new_tokens=6)


@pytest.fixture(scope="module")
def m(tiny_model: Path) -> Model:
    return sae.model(str(tiny_model), device="cpu")


@pytest.fixture(scope="module")
def folder(m: Model, tmp_path_factory: pytest.TempPathFactory) -> str:
    found = tmp_path_factory.mktemp("dictionaries") / "standard"
    dictionary = random_dictionary("standard").placed(find_site(m.module, HOOK))
    sae.save(replace(dictionary, record=replace(dictionary.record)), str(found))
    return str(found)


def logits(m: Model, ids, *edits):
    with torch.inference_mode(), edited(m.module, edits):
        return m.module(ids, use_cache=False).logits


def states(m: Model, ids, hook: str = HOOK):
    return read_activations(m.module, [find_site(m.module, hook)], ids)[hook][0].clone()


def vector(seed: int = 0, norm: float = 50.0):
    drawn = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return norm * drawn / drawn.norm()


# What is put where


def test_the_placeholder_is_found_wherever_a_space_is(m):
    found = placed(m.language_model, ASK)
    tokens = m.tokens(PROMPT)
    assert tokens[found.position].strip() == "x"
    assert len(found.ids) == len(tokens)
    # It may begin the prompt: the token before the text is no part of it.
    begins = placed(m.language_model, Question(prompt="x the river", placeholder="x"))
    assert begins.position == 1


@pytest.mark.parametrize("hook", [HOOK, "blocks.0.hook_resid_mid", "blocks.2.hook_resid_pre"])
def test_a_state_put_into_itself_changes_nothing_to_the_bit(m, hook):
    found, site = placed(m.language_model, ASK), find_site(m.module, hook)
    ids = found.ids[None]
    own = states(m, ids, hook)[found.position][None]
    edit = put(site, found.position, own)
    assert torch.equal(logits(m, ids, edit), logits(m, ids))
    sampling = ASK.sampling
    assert torch.equal(
        generate(m.language_model, ids, [edit], sampling),
        generate(m.language_model, ids, [], sampling),
    )


def test_a_state_of_a_block_is_what_the_next_one_reads(m):
    """The hook of block N is its output: not the embedding's, and not one block off."""
    found = placed(m.language_model, ASK)
    ids = found.ids[None]
    for block in range(3):
        hook = f"blocks.{block}.hook_resid_post"
        hidden = states(m, ids, hook)[None]
        hidden[0, found.position] = vector()
        expected = resume(m.module, block + 1, hidden, ids).logits
        edit = put(find_site(m.module, hook), found.position, vector()[None])
        assert torch.equal(logits(m, ids, edit), expected)
        assert not torch.equal(expected, logits(m, ids))


def test_only_the_prompt_is_changed_so_a_cache_makes_no_difference(m):
    found, site = placed(m.language_model, ASK), find_site(m.module, HOOK)
    edit = put(site, found.position, vector()[None])

    def written(edits, use_cache):
        with edited(m.module, edits):
            out = m.module.generate(
                found.ids[None],
                attention_mask=torch.ones_like(found.ids[None]),
                max_new_tokens=6,
                do_sample=False,
                use_cache=use_cache,
                output_scores=True,
                return_dict_in_generate=True,
            )
        return out.sequences, torch.stack(out.scores)

    with_cache, scores = written([edit], True)
    without, same = written([edit], False)
    assert torch.equal(with_cache, without)
    torch.testing.assert_close(scores, same, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores, written([], True)[1], atol=0.1)
    # Whatever follows, it is what was there that changes: one row and no other.
    with edited(m.module, [edit]):
        after = states(m, with_cache)
    before = states(m, with_cache)
    changed = (after != before).any(1).nonzero().flatten().tolist()
    assert changed == [found.position]


def test_padding_before_a_prompt_moves_nothing(m):
    found, site = placed(m.language_model, ASK), find_site(m.module, HOOK)
    other = torch.from_numpy(m.language_model.prompt_ids(PROMPT + " seven grey cats")).long()
    n = len(other) - len(found.ids)
    pad = torch.full((n,), m.language_model.marks.pad)
    batch = torch.stack([torch.cat([pad, found.ids]), other])
    mask = torch.ones_like(batch)
    mask[0, :n] = 0
    sampling = Sampling(max_new_tokens=6, temperature=0, seed=0)
    both = generate(
        m.language_model,
        batch,
        [put(site, found.position, torch.stack([vector(), vector(1)]))],
        sampling,
        attention_mask=mask,
    )
    for row, ids, seed in ((0, found.ids, 0), (1, other, 1)):
        edit = put(site, found.position, vector(seed)[None])
        alone = generate(m.language_model, ids[None], [edit], sampling)
        assert torch.equal(both[row], alone[0])


def test_nothing_is_left_behind_by_what_fails(m):
    before, site = hook_count(m.module), find_site(m.module, HOOK)

    def stop() -> None:
        raise RuntimeError("nobody waits")

    with pytest.raises(RuntimeError, match="nobody waits"):
        answers(m.language_model, ASK, site, {"state": vector()}, stop)
    assert hook_count(m.module) == before
    assert "generate" not in vars(m.module)


# What is told


def test_every_control_is_as_long_as_what_it_stands_beside(m, folder):
    for record in m.patchscope(TEXT, at=HOOK, question=ASK).records:
        plain, state, *controls = record.answers
        assert (plain.arm, plain.norm) == ("unpatched", None)
        assert [one.arm for one in controls] == ["random", "other position"]
        assert [one.norm for one in controls] == pytest.approx([state.norm] * 2, rel=1e-5)
    found = m.patchscope((folder, 5), scales=(1, 3), question=ASK)
    assert [record.scale for record in found.records] == [1, 3]
    unit = typical_norm(m.language_model, ASK, find_site(m.module, found.records[0].into))
    for record in found.records:
        _, feature, random = record.answers
        assert feature.norm == pytest.approx(record.scale * unit, rel=1e-5)
        assert random.norm == pytest.approx(feature.norm, rel=1e-5)


def test_figures_are_those_of_the_texts(m):
    model, site = m.language_model, find_site(m.module, HOOK)
    source = source_of(model, TEXT, -3)
    ids = torch.from_numpy(model.prompt_ids(TEXT)).long()
    assert source.position == len(ids) - 3
    assert source.token == m.tokens(TEXT)[-3]
    assert source.next_id == int(logits(m, ids[None])[0, -3].argmax())
    (record,) = m.patchscope(TEXT, at=HOOK, token=-3, question=ASK).records
    plain, state = record.answers[:2]
    assert state.norm == pytest.approx(float(states(m, ids[None])[-3].norm()), rel=1e-5)
    found = placed(model, ASK)
    edit = put(site, found.position, states(m, ids[None])[-3][None])
    written = generate(model, found.ids[None], [edit], ASK.sampling)
    assert state.text == m.tokenizer.decode(written[0])
    both = torch.cat([found.ids[None], written], 1)
    start = len(found.ids) - 1
    at = torch.arange(written.shape[1]), written[0]
    p = logits(m, both, edit)[0, start:-1].softmax(1)[at]
    q = logits(m, both)[0, start:-1].softmax(1)[at]
    assert [t.probability for t in state.tokens] == pytest.approx(p.tolist(), abs=1e-5)
    assert [t.relevancy for t in state.tokens] == pytest.approx(
        (p - q).abs().tolist(), abs=1e-5
    )
    assert all(t.relevancy == 0 for t in plain.tokens)
    first = logits(m, found.ids[None], edit)[0, -1].log_softmax(0)
    assert state.next_surprisal == pytest.approx(-float(first[source.next_id]), abs=1e-4)
    assert state.says_next == (int(first.argmax()) == source.next_id)


def test_the_last_state_at_the_end_of_a_prompt_says_what_comes_next(m):
    """What the last block returns is all that the next token hangs on."""
    question = Question(prompt="the old mill x", placeholder="x", max_new_tokens=1)
    last = "blocks.2.hook_resid_post"
    (record,) = m.patchscope(TEXT, at=last, question=question).records
    assert record.mine.says_next
    assert not record.answers[0].says_next


def test_places_are_chosen_where_none_are_given(m, folder):
    found = m.patchscope(TEXT, question=ASK)
    ends = [f"blocks.{i}.hook_resid_post" for i in range(3)]
    assert [(one.at, one.into) for one in found.records] == [(end, end) for end in ends]
    assert {one.into for one in m.patchscope((folder, 5), question=ASK).records} == {ends[1]}
    (moved,) = m.patchscope(TEXT, at=ends[2], into=ends[0], question=ASK).records
    assert (moved.at, moved.into) == (ends[2], ends[0])
    said = str(found)
    assert repr(found) == said
    assert f"    state           {found.records[0].mine.text!r}" in said


# The command


def test_the_command_says_it_writes_it_and_reads_it_again(tiny_model, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["patchscope", f"run={run}", f"model={tiny_model}", f"text={TEXT}", "name=mine"]
    words += [f"prompt={PROMPT}", "placeholder=x", "max_new_tokens=4", f"at=[{HOOK}]"]
    assert main(words) == 0
    said = capsys.readouterr()
    path = run / "patchscopes/mine.json"
    found = json.loads(path.read_text())
    assert said.out.splitlines() == found["told"]
    (record,) = found["records"]
    assert [one["arm"] for one in record["answers"]] == [
        "unpatched",
        "state",
        "random",
        "other position",
    ]
    before = path.read_bytes()
    assert main(words) == 0
    again = capsys.readouterr()
    assert "reused" in again.err
    assert again.out == said.out
    assert path.read_bytes() == before
    assert main([*words, "seed=1"]) == 0
    assert path.read_bytes() != before
    # A line end can be written in a word.
    assert main([*words, r"prompt=the x\nriver"]) == 0
    assert json.loads(path.read_text())["question"]["prompt"] == "the x\nriver"


def test_a_dictionary_says_of_which_model_it_is(tiny_run, tmp_path):
    place = str(tiny_run / "dictionaries/strong")
    found = sae.patchscope(
        run=str(tmp_path), dictionary=place, feature=3, max_new_tokens=2, scales=[1.0]
    )
    (record,) = found["records"]
    assert record["at"] == HOOK
    assert len(list((tmp_path / "patchscopes").glob("strong-3-*.json"))) == 1


def test_a_feature_without_a_dictionary_is_one_of_the_run(tiny_run, tmp_path, capsys):
    for name in ("strong", "strong-frozen-decoder"):
        shutil.copytree(tiny_run / "dictionaries/strong", tmp_path / "dictionaries" / name)
    words = ["patchscope", f"run={tmp_path}", "feature=3", "max_new_tokens=2", "scales=[1]"]
    assert main(words) == 0
    assert "strong is taken" in capsys.readouterr().err
    assert len(list((tmp_path / "patchscopes").glob("strong-3-*.json"))) == 1


# Refusals


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "there is no text and no feature to ask about; give text=... or feature=N"),
        (["text=a", "dictionary=d", "feature=1"], "give one of the two"),
        (["text=''"], "text is empty"),
        (["dictionary=d"], "dictionary=d without a feature; give feature=N too"),
        (["text=a", "feature=1"], "text=a and feature=1; give one of the two"),
        (["text=a", "max_new_tokens=0"], "max_new_tokens=0"),
        (["text=a", "prompt=''"], "prompt is empty"),
        (["text=a", "placeholder=''"], "placeholder is empty"),
        (["text=a", "scales=[1]"], "scales=[1.0] has no effect here"),
        (["text=a", "name=a/b"], "name=a/b is no name of one folder"),
        (["text=a", "at=[blocks.9.hook_resid_post]"], "has layers 0 to 2"),
        (["text=a", "into=blocks.1.mlp.hook_post", f"at=[{HOOK}]"], "is 64; give"),
        (["text=a", "token=2"], "token=2 is out of range: the text has 2 tokens"),
        (["text=a", "token=-3"], "give -2 to 1"),
        (["text=a", "placeholder=y"], "placeholder=y is not in the prompt"),
        (["text=a", "prompt=x or x", "placeholder=x"], "placeholder=x stands 2 times"),
        (["text=a", "prompt=the river", "placeholder=iv"], "placeholder=iv is no token of its"),
        (["text=a", "max_new_tokens=120"], "120 are to be written, but the model reads only"),
        (["dictionary={d}", "feature=64"], "feature=64 is out of range; this dictionary has 0"),
        (["dictionary={d}", "feature=-1"], "feature=-1 is out of range"),
        (["dictionary={d}", "feature=1", "scales=[0]"], "scales=[0.0]; give lengths above 0"),
        (["dictionary={d}", "feature=1", "into=blocks.1.mlp.hook_post"], "is 64 wide, but the"),
        (["dictionary={d}", "feature=1", "into=blocks.1.attn.hook_z"], "give into=blocks"),
        (["dictionary={d}", "feature=1", "model=gpt2"], "leave out model"),
        (["dictionary={d}", "feature=1", "at=[x]"], "is only used with text=..."),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_in_a_sentence(
    words, sentence, tiny_model, tiny_run, tmp_path, capsys
):
    given = [word.format(d=tiny_run / "dictionaries/strong") for word in words]
    if not any(word.startswith(("dictionary=", "model=")) for word in words):
        given.append(f"model={tiny_model}")
    assert main(["patchscope", f"run={tmp_path}", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sae patchscope: ")
    assert sentence in line
    assert list(tmp_path.iterdir()) == []


def test_a_dictionary_of_another_model_is_refused(tiny_run, tokenizer_folder, tmp_path):
    other = save_tiny_model("llama", tmp_path / "other", tokenizer_folder, seed=1)
    m = sae.model(str(other), device="cpu")
    with pytest.raises(UserError, match=r"is a dictionary of .* and this model has"):
        m.patchscope((str(tiny_run / "dictionaries/strong"), 1))
    with pytest.raises(UserError, match="the text is empty"):
        m.patchscope("")
    with pytest.raises(UserError, match="reads only 128 at once"):
        m.patchscope("river " * 200)


def test_a_model_that_writes_nothing_is_refused(encoder, tmp_path, capsys):
    with pytest.raises(UserError, match="predicts no next token, so it cannot write"):
        sae.model(str(encoder), device="cpu").patchscope("seven grey cats")
    words = ["patchscope", f"run={tmp_path}", f"model={encoder}", "text=seven"]
    assert main([*words, "at=[blocks.0.hook_resid_pre]"]) == 2
    assert "predicts no next token" in capsys.readouterr().err
