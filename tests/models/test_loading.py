"""Models as strangers leave them: whatever is wrong is one sentence, and none of it runs."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sae.base.errors import UserError
from sae.models.load import (
    ModelConfig,
    load_model,
    load_skeleton,
    load_tokenizer,
    recorded_config,
    recorded_model,
)
from sae.models.record import ModelRecord

OWN_CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Path({canary!r}).write_text("ran")


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def changed(file: Path, **values: object) -> None:
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | values))


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def with_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model with classes of its own, in a module that leaves a file when it runs."""
    monkeypatch.setenv("SAE_ATLAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m")
    )
    # Somebody who answers whatever is asked with yes.
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    (folder / "own.py").write_text(OWN_CODE.format(canary=str(tmp_path / "canary")))
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    changed(
        folder / "config.json", model_type="own", architectures=["OwnModel"], auto_map=classes
    )
    tokenizers = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    changed(
        folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=tokenizers
    )
    return folder


@pytest.mark.parametrize("read", [load_model, load_skeleton, load_tokenizer])
def test_code_that_comes_with_a_model_is_not_run_even_with_a_yes_on_standard_input(
    with_code, tmp_path, read
):
    with pytest.raises(UserError, match=r"code of its own.*model\.trust_remote_code=true"):
        read(ModelConfig(name=str(with_code)))
    assert not (tmp_path / "canary").exists()


def test_a_known_class_is_taken_before_one_that_comes_with_the_model(
    with_code, tmp_path, tiny_model
):
    changed(
        with_code / "config.json",
        model_type="llama",
        architectures=["LlamaForCausalLM"],
        auto_map={"AutoModelForCausalLM": "own.OwnModel"},
    )
    shutil.copy(tiny_model / "tokenizer_config.json", with_code)
    found = load_model(ModelConfig(name=str(with_code)))
    assert type(found.module).__module__.startswith("transformers.")
    assert not (tmp_path / "canary").exists()


def test_code_runs_where_it_was_allowed_and_a_record_alone_allows_nothing(
    with_code, tmp_path, tiny_model, monkeypatch
):
    config = ModelConfig(name=str(with_code), trust_remote_code=True)
    model = load_model(config)
    assert type(model.module).__name__ == "OwnModel"
    assert (tmp_path / "canary").exists()
    assert model.record.trust_remote_code
    ids = torch.arange(2, 12)[None]
    expected = load_model(ModelConfig(name=str(tiny_model))).module(ids).logits
    torch.testing.assert_close(model.module(ids).logits, expected, rtol=0, atol=0)
    assert recorded_model(model.record, "cpu").record == model.record
    # The same record on a machine where nobody has allowed it, as from a stranger's file.
    monkeypatch.setenv("SAE_ATLAS_CACHE", str(tmp_path / "another"))
    with pytest.raises(UserError, match="nobody has allowed on this machine; read that code"):
        recorded_config(model.record, "cpu")


def test_a_kernel_from_the_hub_is_code_of_others_as_well(folder):
    changed(folder / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(UserError, match=r"kernel from the Hub \(somebody/kernel\)"):
        load_skeleton(ModelConfig(name=str(folder)))


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def holding(name: str, content: bytes, *missing: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        without(*missing)(folder)
        (folder / name).write_bytes(content)

    return change


def configured(**values: object) -> Callable[[Path], None]:
    return lambda folder: changed(folder / "config.json", **values)


def quantised(**how: object) -> Callable[[Path], None]:
    return configured(quantization_config=how)


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
WEIGHTS = "model.safetensors"
BROKEN = [
    (without(*TOKENIZER), "its tokenizer .*, where no tokenizer is; put the model's own there"),
    (
        holding(TOKENIZER[0], b'{"a": 1}'),
        r"its tokenizer .*; put .* message: KeyError: 'added_tok",
    ),
    (holding(TOKENIZER[0], b"\xff\x00"), "its tokenizer .*Its message: UnicodeDecodeError"),
    (holding(TOKENIZER[1], b"[]"), "its tokenizer .*Its message: AttributeError"),
    (holding("tokenizer.model", b"junk", *TOKENIZER), "its tokenizer .*tiktoken"),
    (
        without(WEIGHTS),
        r"its weights could .*folder\. Its message: OSError: Error no file named",
    ),
    (holding(WEIGHTS, b"\x10" * 40), "its weights could not .*Its message: SafetensorError"),
    (
        holding("pytorch_model.bin", b"\x80\x04\x95junk", WEIGHTS),
        r"its weights could .*a \.bin file can hold code, which is never run: give safetensors",
    ),
    (holding("config.json", b"[]"), "its configuration could not be read"),
    (configured(hidden_size="many"), "its configuration .*Field 'hidden_size' expected int"),
    (configured(intermediate_size=16), "its weights could not be read"),
    (quantised(quant_method="bitsandbytes", load_in_4bit=True), "quantised: bitsandbytes"),
    (quantised(quant_method="gptq", bits=4), "quantised: gptq"),
    (quantised(quant_method="awq", bits=4), r"quantised: awq\).*in float32, bfloat16 or floa"),
    (quantised(quant_method="compressed-tensors"), "quantised: compressed-tensors"),
    (quantised(quant_method="nobodys"), "quantised: nobodys.* does not know; give the model"),
    (quantised(bits=4), r"quantised: the configuration does not say how"),
    (configured(quantization_config="4 bits"), "its configuration could not be read"),
    (
        holding("x.gguf", b"GGUF", "config.json"),
        r"x\.gguf and no config\.json.*convert it once",
    ),
    (holding("adapter_config.json", b"{}", "config.json"), "it is an adapter: merge it into"),
]


@pytest.mark.parametrize(("change", "sentence"), BROKEN)
def test_what_a_library_says_of_a_broken_model_is_one_sentence_with_the_models_name(
    folder, change, sentence
):
    change(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        load_model(ModelConfig(name=str(folder)))
    said = str(caught.value)
    assert said.startswith(f"model.name={folder}")
    assert "\n" not in said


def test_a_file_in_place_of_a_folder_is_refused(folder):
    with pytest.raises(UserError, match="is a file; give the folder that contains it"):
        load_skeleton(ModelConfig(name=str(folder / WEIGHTS)))


def test_a_tokenizer_of_special_tokens_alone_is_refused(folder):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    empty = Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>"))
    PreTrainedTokenizerFast(tokenizer_object=empty, bos_token="<s>").save_pretrained(folder)
    with pytest.raises(UserError, match="has a tokenizer without text tokens"):
        load_model(ModelConfig(name=str(folder)))


def test_a_broken_model_of_the_hub_is_no_matter_of_its_name(monkeypatch, tiny_model):
    """As where a package is missing that reads the weights."""
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(tiny_model)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: settings)

    def fail(*_: object, **__: object) -> None:
        raise ImportError("This tokenizer needs `another`: `pip install another`")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(
        UserError, match=r"model\.name=ORG/MODEL: its tokenizer could.*ImportError: This token"
    ):
        load_model(ModelConfig(name="ORG/MODEL"))


def test_records_from_before_marks_were_kept_have_the_marks_that_were_guessed_then(tiny_model):
    """They were: the beginning token, or else the end token."""
    model = load_model(ModelConfig(name=str(tiny_model)))
    kept = model.record.to_json()
    assert recorded_model(model.record, "cpu").marks == model.marks
    for key in ("begin", "end", "trust_remote_code"):
        del kept[key]
    from sae.base import JsonObject

    before = ModelRecord.from_json(JsonObject("file", "", kept, ""))
    assert (before.begin, before.end) == (None, None)
    assert recorded_model(before, "cpu").marks == model.marks
