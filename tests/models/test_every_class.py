"""Every class of transformers that reads tokens: each name it has keeps its promise.

Classes are built with random weights and as few of them as their configurations allow.
"""

import inspect
from typing import Any

import pytest
import torch
from support.identities import check_identities, scrambled
from support.tiny import is_tiny, tiny_config, tiny_of

from sae.models.probe import probe

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

SKIPPED = {
    "kimi_linear": "its recurrence is a loop of seconds even for a few tokens",
    "falcon_h1": "its recurrence is a loop of seconds even for a few tokens",
    "ibert": "its modules are given scales beside tensors, so that none can be called alone",
}

# Of all others every name is right. These have none, or are not looked at, and this is why.
OTHERS = {
    "causal": {
        # Streams that are several, or turned over, or longer than the text; blocks that are in
        # pieces or called more than once.
        "unnamed": ("cpmant", "hrm_text", "hy_v4", "xlm", "xlnet"),
        # They ask for a language, or for sizes that those of a tiny model contradict.
        "refused": ("axk1", "xmod"),
        # Parts for pictures, sound or bytes keep their sizes.
        "large": (
            *("blt", "deepseek_v4", "fuyu", "gemma3", "gemma4_unified", "got_ocr2"),
            *("longcat_flash", "moss_transcribe_diarize"),
        ),
        # Sizes that contradict each other, or libraries that are not here.
        "not made": (
            *("cohere_compass_text", "dbrx", "dots1", "dots3_note", "gemma3n", "gemma3n_text"),
            *("gemma4_assistant", "gemma4_unified_assistant", "lfm2_moe", "moshi", "reformer"),
            *("zamba", "zamba2"),
        ),
    },
    "base": {
        "unnamed": ("albert", "flaubert", "longformer", "squeezebert"),
        "refused": (
            *("bros", "canine", "glm4v_moe_text", "glm4v_text", "glm_image_text"),
            *("glm_ocr_text", "hunyuan_vl_text", "layoutlmv3", "lilt", "lxmert"),
            *("qwen2_5_vl_text", "qwen2_vl_text", "sam3_lite_text_text_model", "vilt"),
        ),
        "large": ("luke", "muse_spark_text", "vits"),
        "not made": (
            *("cosmos3_edge_text", "funnel", "glm5_next_text", "layoutlmv2", "neomme"),
        ),
    },
}


def class_names(kind: str) -> dict[str, str]:
    """The classes of a kind that read tokens, by type of model."""
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind == "causal":
        return dict(causal)
    others = {k: v for k, v in modeling_auto.MODEL_MAPPING_NAMES.items() if k not in causal}
    return {k: v if isinstance(v, str) else v[0] for k, v in others.items()}


def reads_tokens(kind: Any) -> bool:
    return kind is not None and "input_ids" in inspect.signature(kind.forward).parameters


def outcomes(kind: str) -> dict[str, str]:
    """What became of each type: `named`, or why it has no names here."""
    auto = {"causal": transformers.AutoModelForCausalLM, "base": transformers.AutoModel}[kind]
    found: dict[str, str] = {}
    for model_type, name in class_names(kind).items():
        of = transformers.CONFIG_MAPPING[model_type]
        # Pictures and sound beside text: their causal models are here, under that kind.
        mixed = kind == "base" and of.sub_configs
        if (
            mixed
            or model_type in SKIPPED
            or not reads_tokens(getattr(transformers, name, None))
        ):
            continue
        try:
            config = tiny_config(of, model_type)
            if config.is_encoder_decoder:
                continue
            with torch.device("meta"):
                skeleton = auto.from_config(config)
            model = scrambled(tiny_of(config, auto)) if is_tiny(skeleton) else None
        # Whatever a configuration says of sizes that do not go together.
        except Exception:
            found[model_type] = "not made"
            continue
        found[model_type] = "large" if model is None else outcome(model)
    return found


def outcome(model: Any) -> str:
    known = probe(model)
    if known.failure:
        return "refused"
    if not known.sites:
        return "unnamed"
    try:
        check_identities(model)
    except AssertionError as error:
        return f"wrong: {error}"
    return "named"


@pytest.mark.parametrize(("kind", "n_named"), [("causal", 140), ("base", 35)])
def test_every_name_is_right_in_every_class_that_can_be_made_tiny(kind, n_named):
    found = outcomes(kind)
    named = [model_type for model_type, what in found.items() if what == "named"]
    expected = {t: what for what, types in OTHERS[kind].items() for t in types}
    assert {t: what for t, what in found.items() if what != "named"} == expected
    assert len(named) > n_named
