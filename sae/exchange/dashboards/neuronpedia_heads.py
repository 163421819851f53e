"""The files of one row each that stand beside the tables of Neuronpedia's bulk layout."""

from collections.abc import Mapping
from datetime import UTC, datetime

from sae.atlas import AtlasRecord
from sae.exchange.dashboards.place import Place

Row = dict[str, object]


def heads(record: AtlasRecord, place: Place, sizes: tuple[int, int]) -> dict[str, Row]:
    """The rows of `release`, `model`, `sourceset` and `source`.

    Args:
        record: of the atlas; all of it is kept in the source's `saelensConfig`.
        sizes: layers of the model, and neurons of each; zeros if they are not known.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    what = f"{record.dictionary} at {record.hook_name} of {record.model_name}"
    whose = {"creatorId": place.creator_id, "createdAt": now, "visibility": "PUBLIC"}
    return {
        **_release_and_model(record, place, what, whose, sizes),
        **_set_and_source(record, place, what, whose),
    }


def _release_and_model(
    record: AtlasRecord,
    place: Place,
    what: str,
    whose: Mapping[str, object],
    sizes: tuple[int, int],
) -> dict[str, Row]:
    model = record.model_name
    return {
        "release": {
            "name": place.source_set,
            "description": what,
            "descriptionShort": record.dictionary,
            "urls": [],
            "creatorName": place.creator,
            "creatorNameShort": place.creator,
            "isNewUi": False,
            "featured": False,
            "defaultUmapSourceIds": [],
            **whose,
        },
        "model": {
            "id": place.model_id,
            "displayName": model.split("/")[-1],
            "displayNameShort": model.split("/")[-1],
            "instruct": "instruct" in model.lower() or model.endswith("-it"),
            "inferenceEnabled": False,
            "layers": sizes[0],
            "neuronsPerLayer": sizes[1],
            "owner": model.split("/")[0] if "/" in model else "",
            "updatedAt": whose["createdAt"],
            **whose,
        },
    }


def _set_and_source(
    record: AtlasRecord, place: Place, what: str, whose: Mapping[str, object]
) -> dict[str, Row]:
    config = {
        "architecture": record.architecture,
        "d_in": record.d_in,
        "d_sae": record.d_sae,
        "metadata": {
            "model_name": record.model_name,
            "hook_name": record.hook_name,
            "hook_name_out": record.hook_name_out,
            "sae_atlas_manifest": record.to_json(),
        },
    }
    return {
        "sourceset": {
            "modelId": place.model_id,
            "name": place.source_set,
            "hasDashboards": True,
            "description": what,
            "type": "",
            "creatorName": place.creator,
            "urls": [],
            "releaseName": place.source_set,
            "defaultRange": 1,
            "defaultShowBreaks": True,
            "showDfa": False,
            "showCorrelated": True,
            "showHeadAttribution": False,
            "showUmap": False,
            **whose,
        },
        "source": {
            "id": place.source,
            "modelId": place.model_id,
            "setName": place.source_set,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "saelensConfig": config,
            "hasUmap": False,
            "hasUmapLogSparsity": False,
            "hasUmapClusters": False,
            "num_prompts": record.n_sequences,
            "num_tokens_in_prompt": record.context_size,
            "dataset": record.data,
            **whose,
        },
    }
