"""The one schema of an atlas's tables: what is written, read and documented."""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support.files import unseal

import sae
from sae.atlas.atlas import Atlas
from sae.atlas.directions import direction_columns
from sae.atlas.schema import CONTEXTS, DIALS, FEATURES, LOGIT_IDS, LOGITS
from sae.atlas.table import columns_of
from sae.base.errors import UserError

PAGE = Path(__file__).parents[2] / "docs/atlas.md"
TABLES = (FEATURES, CONTEXTS)


@pytest.fixture(scope="module")
def analyzed(tiny_run, tmp_path_factory):
    """The atlas of `strong`; not to be changed."""
    run = tmp_path_factory.mktemp("schema") / "run"
    shutil.copytree(tiny_run, run)
    return sae.analyze(run=str(run), dictionary="strong", n_contexts=2)


@pytest.fixture
def atlas(analyzed, tmp_path):
    """A copy that may be changed."""
    return Atlas(shutil.copytree(analyzed.folder, tmp_path / "atlas"))


def documented(page: str) -> str:
    """The page with the tables of columns as they should be."""
    for table in TABLES:
        lines = ["| column | type | meaning |", "|---|---|---|"]
        lines += [f"| `{c.name}` | `{c.kind}` | {c.meaning} |" for c in table.columns.values()]
        begin = f"## {table.file}\n"
        pattern = re.compile(re.escape(begin) + r"(.*?\n)\|.*?\n(?=\n)", re.DOTALL)
        assert len(pattern.findall(page)) == 1
        text = "\n".join(lines)
        page = pattern.sub(lambda found, b=begin, t=text: f"{b}{found[1]}{t}\n", page)
    return page


# Documented


def test_the_page_of_the_atlas_has_every_column_with_its_meaning(check_page):
    check_page(PAGE, documented(PAGE.read_text(encoding="utf-8")))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.file)
def test_every_column_has_a_meaning_of_its_own_and_a_type_that_arrow_knows(table):
    for column in table.columns.values():
        assert len(column.meaning.split()) > 2
        assert isinstance(column.type, pyarrow.DataType)
        assert column.beside == "" or table.columns[column.beside].kind.startswith("list<")


def test_every_column_that_an_analysis_writes_is_in_the_schema_with_its_type(analyzed):
    for table in TABLES:
        found = pyarrow.parquet.read_schema(analyzed.folder / table.file)
        types = {field.name: field.type for field in found}
        wanted = [column for column in table.columns.values() if column.group != "renumbered"]
        assert types == {column.name: column.type for column in wanted}
        assert list(types) == [column.name for column in wanted]


def test_the_types_of_format_two_stay_as_they_are(analyzed):
    folder = analyzed.folder
    features = pyarrow.parquet.read_schema(folder / "features.parquet")
    dials = [one.name for one in FEATURES.columns.values() if one.group == DIALS]
    assert {str(features.field(name).type) for name in dials} == {"float", "string"}
    assert dials == [f.name for f in features if f.name in dials]
    for name in dials:
        features = features.remove(features.get_field_index(name))
    assert {f.name: str(f.type).replace("element", "item") for f in features} == {
        "feature": "int32",
        "label": "string",
        "density": "double",
        "n_active": "int64",
        "max_activation": "float",
        "mean_activation": "double",
        "std_activation": "double",
        "histogram": "list<item: int64>",
        "positions": "list<item: int64>",
        "n_documents": "int64",
        "top_document_share": "float",
        "top_token_ids": "list<item: int32>",
        "top_tokens": "list<item: string>",
        "top_token_counts": "list<item: int64>",
        "top_token_rates": "list<item: float>",
        "decoder_norm": "float",
        "encoder_norm": "float",
        "neighbours": "list<item: int32>",
        "neighbour_cosines": "list<item: float>",
        "correlated": "list<item: int32>",
        "correlations": "list<item: float>",
        "coactive": "list<item: int32>",
        "coactive_counts": "list<item: int64>",
        "coactive_jaccard": "list<item: float>",
        "top_logit_tokens": "list<item: string>",
        "top_logit_ids": "list<item: int32>",
        "top_logits": "list<item: float>",
        "bottom_logit_tokens": "list<item: string>",
        "bottom_logit_ids": "list<item: int32>",
        "bottom_logits": "list<item: float>",
        "stability": "float",
        "logit_sharpness": "float",
        "logit_agreement": "double",
        "map_x": "float",
        "map_y": "float",
    }
    contexts = pyarrow.parquet.read_schema(folder / "contexts.parquet")
    assert {f.name: str(f.type).replace("element", "item") for f in contexts} == {
        "feature": "int32",
        "group": "string",
        "band": "int8",
        "rank": "int32",
        "sequence": "int64",
        "position": "int32",
        "start": "int32",
        "activation": "float",
        "token_ids": "list<item: int32>",
        "tokens": "list<item: string>",
        "activations": "list<item: float>",
    }


def test_norms_neighbours_and_places_come_from_directions_alone(tiny_run):
    dictionary = sae.load(str(tiny_run / "dictionaries/strong"))
    columns = direction_columns(
        dictionary,
        np.zeros((64, 15), np.int64),
        np.zeros((64, 15), np.float32),
        np.zeros((64, 2), np.float32),
    )
    assert " ".join(columns) == (
        "decoder_norm encoder_norm neighbours neighbour_cosines map_x map_y"
    )


# Written


def changed(atlas, name, values):
    return columns_of(atlas.feature_table()) | {name: values}


def test_a_column_that_is_not_in_the_schema_is_not_written(atlas, tmp_path):
    with pytest.raises(ValueError, match=r"features\.parquet has no column 'colour'"):
        FEATURES.write(tmp_path, changed(atlas, "colour", [0] * 64))
    assert not (tmp_path / "features.parquet").exists()


def test_a_column_of_another_type_is_not_written(atlas, tmp_path):
    numbers = np.arange(64)
    with pytest.raises(ValueError, match="'feature' of type int64, not int32"):
        FEATURES.write(tmp_path, changed(atlas, "feature", numbers))
    with pytest.raises(ValueError, match="'density' of type float, not double"):
        FEATURES.write(tmp_path, changed(atlas, "density", np.zeros(64, np.float32)))


def test_a_table_without_one_of_its_columns_is_not_written(atlas, tmp_path):
    columns = columns_of(atlas.feature_table())
    for name in ("density", "top_logits", "top_logit_ids"):
        with pytest.raises(ValueError, match=f"lacks the column '{name}'"):
            FEATURES.write(tmp_path, {k: v for k, v in columns.items() if k != name})


def test_logits_are_there_as_a_whole_or_not_at_all(atlas, tmp_path):
    columns = columns_of(atlas.feature_table())
    groups = {column.name: column.group for column in FEATURES.columns.values()}
    kept = {k: v for k, v in columns.items() if groups[k] not in (LOGITS, LOGIT_IDS)}
    assert len(kept) < len(columns)
    FEATURES.write(tmp_path, kept)
    assert FEATURES.read(tmp_path).column_names == [n for n in columns if n in kept]


def test_columns_are_written_in_the_order_of_the_schema(atlas, tmp_path):
    table = atlas.feature_table()
    shuffled = dict(reversed(columns_of(table).items()))
    FEATURES.write(tmp_path, shuffled)
    assert FEATURES.read(tmp_path).equals(table)


def test_contexts_written_in_pieces_are_the_table_in_one(atlas, tmp_path):
    table = atlas.context_table()
    starts = range(0, len(table), 100)
    CONTEXTS.write_pieces(tmp_path, (columns_of(table.slice(s, 100)) for s in starts))
    assert CONTEXTS.read(tmp_path).equals(table)
    batches = list(CONTEXTS.batches(tmp_path))
    assert pyarrow.Table.from_batches(batches).equals(table)


def test_what_is_not_known_is_null_or_an_empty_list():
    found = FEATURES.nothing(2, ["label", "density", "histogram"])
    assert {name: array.to_pylist() for name, array in found.items()} == {
        "label": [None, None],
        "density": [None, None],
        "histogram": [[], []],
    }
    assert all(array.type == FEATURES.columns[name].type for name, array in found.items())


# Read


def rewritten(atlas, file, change):
    path = unseal(atlas.folder) / file
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)


def with_type(name, kind):
    def change(table):
        place = table.column_names.index(name)
        return table.set_column(place, name, table[name].cast(kind))

    return change


@pytest.mark.parametrize(
    ("file", "name", "kind"),
    [
        ("features.parquet", "density", pyarrow.float32()),
        ("features.parquet", "neighbours", pyarrow.list_(pyarrow.int64())),
        ("contexts.parquet", "band", pyarrow.int64()),
    ],
)
def test_an_atlas_whose_table_has_a_wrong_type_is_refused_in_a_sentence(
    atlas, file, name, kind
):
    rewritten(atlas, file, with_type(name, kind))
    read = atlas.features if file == FEATURES.file else atlas.contexts
    said = f"{file} .* '{name}' of type .*: run sae analyze again"
    with pytest.raises(UserError, match=said):
        read()
    if file == CONTEXTS.file:
        with pytest.raises(UserError, match=f"'{name}' of type"):
            list(atlas.context_batches())


def test_an_atlas_whose_table_lacks_a_column_is_refused_in_a_sentence(atlas):
    rewritten(atlas, "features.parquet", lambda table: table.drop_columns(["positions"]))
    with pytest.raises(UserError, match="lacks the column 'positions'"):
        atlas.features()
    with pytest.raises(UserError, match="lacks the column 'positions'"):
        atlas.feature_table(["feature", "positions"])
    assert atlas.feature_table(["density"]).column_names == ["density"]


def test_a_column_that_somebody_added_is_left_alone(atlas):
    before = atlas.feature_table()
    rewritten(atlas, "features.parquet", lambda t: t.append_column("mine", [["x"] * 64]))
    assert atlas.feature_table().equals(before)
