"""What `sae` offers. Written by scripts/stubs.py; a test compares the two."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from sae.analysis.analyze import AnalyzeConfig as AnalyzeConfig
from sae.analysis.dials import DialConfig as DialConfig
from sae.architectures.base import ArchitectureConfig as ArchitectureConfig
from sae.architectures.jumprelu import JumpReLUConfig as JumpReLUConfig
from sae.architectures.nested import HierarchicalTopKConfig as HierarchicalTopKConfig
from sae.architectures.nested import MatryoshkaConfig as MatryoshkaConfig
from sae.architectures.nested import OrderedTopKConfig as OrderedTopKConfig
from sae.architectures.penalised import GatedConfig as GatedConfig
from sae.architectures.penalised import PAnnealConfig as PAnnealConfig
from sae.architectures.penalised import StandardConfig as StandardConfig
from sae.architectures.topk import BatchTopKConfig as BatchTopKConfig
from sae.architectures.topk import TopKConfig as TopKConfig
from sae.atlas.atlas import Atlas as Atlas
from sae.base.errors import UserError as UserError
from sae.cache.layout import ActivationCache as ActivationCache
from sae.cache.layout import open_cache as open_cache
from sae.commands.atlas import AtlasExportConfig as AtlasExportConfig
from sae.commands.atlas import AtlasImportConfig as AtlasImportConfig
from sae.commands.cache import CacheExportConfig as CacheExportConfig
from sae.commands.cache import CacheImportConfig as CacheImportConfig
from sae.commands.cache import CacheInfoConfig as CacheInfoConfig
from sae.commands.cache import CacheMergeConfig as CacheMergeConfig
from sae.commands.cache import CacheSampleConfig as CacheSampleConfig
from sae.commands.cache import CacheVerifyConfig as CacheVerifyConfig
from sae.commands.compare import CompareConfig as CompareConfig
from sae.commands.demo import DemoConfig as DemoConfig
from sae.commands.edit import EditBakeConfig as EditBakeConfig
from sae.commands.edit import EditCheckConfig as EditCheckConfig
from sae.commands.edit import EditExportConfig as EditExportConfig
from sae.commands.find import FindConfig as FindConfig
from sae.commands.patch import PatchEditConfig as PatchEditConfig
from sae.commands.patchscope import PatchscopeConfig as PatchscopeConfig
from sae.commands.probe import ProbeEditConfig as ProbeEditConfig
from sae.commands.serve import ServeConfig as ServeConfig
from sae.commands.train import sweep as sweep
from sae.dictionary.dictionary import Dictionary as Dictionary
from sae.edits.file import Edits as Edits
from sae.edits.parse import edit as edit
from sae.edits.record import EditRecord as EditRecord
from sae.evaluation.evaluate import EvalConfig as EvalConfig
from sae.evaluation.model_check import check_model as check_model
from sae.evaluation.recipes import Scored
from sae.exchange.dictionaries import load as load
from sae.exchange.dictionaries import save as save
from sae.exchange.importing import ImportConfig as ImportConfig
from sae.harvesting.config import HarvestConfig as HarvestConfig
from sae.interactive import Model as Model
from sae.interactive import model as model
from sae.lenses.config import LensConfig as LensConfig
from sae.lenses.patchscope import Question as Question
from sae.models.load import ModelConfig as ModelConfig
from sae.pages.comparison import Comparison
from sae.pages.found import Found
from sae.pages.lens import Lens
from sae.pages.results import Evaluation, Steering
from sae.patching.config import PatchConfig as PatchConfig
from sae.patching.results import PatchResults
from sae.probing.config import ProbeConfig as ProbeConfig
from sae.probing.results import ProbeResults
from sae.publishing.plan import ExportConfig as ExportConfig
from sae.rows.dataset import ActivationDataset as ActivationDataset
from sae.rows.reading import Reading as Reading
from sae.steering.config import SteerConfig as SteerConfig
from sae.synthetic.config import WorldConfig as WorldConfig
from sae.text.source import DataConfig as DataConfig
from sae.training.checkpoint import CheckpointConfig as CheckpointConfig
from sae.training.config import SweepConfig as SweepConfig
from sae.training.config import TrainConfig as TrainConfig
from sae.training.loggers import LoggerConfig as LoggerConfig
from sae.training.optim import OptimConfig as OptimConfig
from sae.training.truth import TruthConfig as TruthConfig

__version__: str

@overload
def harvest(
    config: HarvestConfig,
    /,
) -> ActivationCache:
    """Run text through a model and keep its activations at some hooks in a cache."""

@overload
def harvest(
    *,
    model: ModelConfig | str | Mapping[str, object] = ...,
    data: DataConfig | str | Mapping[str, object] = ...,
    hook_names: list[str] | str = ...,
    context_size: int = 128,
    one_document_a_row: bool = False,
    dtype: str = "float16",
    batch_size: int | None = None,
    text_workers: int | None = None,
    run: str = "runs/default",
    cache: str = "{run}/cache.zarr",
    n_tokens: int = 480000,
    compression: str = "none",
    verify: bool = True,
    config: str | None = None,
) -> ActivationCache:
    """Run text through a model and keep its activations at some hooks in a cache."""

@overload
def train(
    config: TrainConfig,
    /,
    *,
    rows: Iterable[Tensor | tuple[Tensor, Tensor]] | None = None,
) -> Dictionary:
    """Train a dictionary on the activations of a cache, or of a model that runs beside it."""

@overload
def train(
    *,
    run: str = "runs/default",
    cache: str | None = "{run}/cache.zarr",
    harvest: Reading | Mapping[str, object] = ...,
    mix_rows: int = 262144,
    hook_name: str | None = None,
    hook_name_out: str | None = None,
    name: str | None = None,
    sae: ArchitectureConfig | str | Mapping[str, object] = ...,
    control: list[str] | str = ...,
    optim: OptimConfig | Mapping[str, object] = ...,
    logger: LoggerConfig | str | Mapping[str, object] = ...,
    training_tokens: int = 2000000,
    train_batch_size_tokens: int = 1024,
    max_norm_multiple: float | None = 10.0,
    dead_feature_window: float = 0.1,
    seed: int = 42,
    shuffle_seed: int = 42,
    init_from: str | None = None,
    extend: bool = False,
    device: str = "auto",
    matmul: str = "auto",
    log_every_steps: int = 10,
    eval_every_steps: int | None = None,
    n_eval_rows: int = 1024,
    checkpoint: CheckpointConfig | Mapping[str, object] = ...,
    sweep: SweepConfig | Mapping[str, object] = ...,
    config: str | None = None,
    rows: Iterable[Tensor | tuple[Tensor, Tensor]] | None = None,
) -> Dictionary:
    """Train a dictionary on the activations of a cache, or of a model that runs beside it."""

@overload
def truth(
    config: TruthConfig,
    /,
) -> Scored:
    """Train a recipe on a world whose features are known, and score what it finds."""

@overload
def truth(
    *,
    run: str = "runs/truth",
    name: str | None = None,
    world: WorldConfig | str | Mapping[str, object] = ...,
    sae: ArchitectureConfig | str | Mapping[str, object] = ...,
    optim: OptimConfig | Mapping[str, object] = ...,
    training_tokens: int = 4000000,
    train_batch_size_tokens: int = 1024,
    seed: int = 42,
    n_scored_rows: int = 65536,
    device: str = "auto",
    config: str | None = None,
) -> Scored:
    """Train a recipe on a world whose features are known, and score what it finds."""

@overload
def eval(
    config: EvalConfig,
    /,
) -> Evaluation:
    """Measure on held-out text how well dictionaries reconstruct, and what the model loses."""

@overload
def eval(
    run: str = "runs/default",
    *,
    cache: str = "{run}/cache.zarr",
    dictionary: str | None = None,
    k: int | None = None,
    n_behaviour_tokens: int = 8192,
    density_rows: int = 131072,
    batch_size: int = 8,
    device: str = "auto",
    suite: str = "held_out",
    max_l0: float = 60.0,
    config: str | None = None,
) -> Evaluation:
    """Measure on held-out text how well dictionaries reconstruct, and what the model loses."""

@overload
def analyze(
    config: AnalyzeConfig,
    /,
) -> Atlas:
    """Make the atlas of a dictionary: how often, where and how strongly each feature fires."""

@overload
def analyze(
    run: str = "runs/default",
    *,
    cache: str = "{run}/cache.zarr",
    dictionary: str | None = None,
    k: int | None = None,
    n_contexts: int = 10,
    n_band_contexts: int = 4,
    n_silent: int = 4,
    context_radius: int = 16,
    n_logits: int = 10,
    dials: DialConfig | Mapping[str, object] = ...,
    seed: int = 0,
    device: str = "auto",
    config: str | None = None,
) -> Atlas:
    """Make the atlas of a dictionary: how often, where and how strongly each feature fires."""

@overload
def serve(
    config: ServeConfig,
    /,
) -> None:
    """Show the atlases of a run in a browser, and try features on your own text there."""

@overload
def serve(
    run: str = "runs/default",
    *,
    host: str = "127.0.0.1",
    port: int = 8321,
    open: bool = False,
    device: str = "auto",
    config: str | None = None,
) -> None:
    """Show the atlases of a run in a browser, and try features on your own text there."""

@overload
def lens(
    config: LensConfig,
    /,
) -> Lens:
    """Show what a model would predict next from its stream after each block."""

@overload
def lens(
    text: str = "The Eiffel Tower is in the city of",
    *,
    run: str = "runs/default",
    name: str = "default",
    model: ModelConfig | str | Mapping[str, object] = ...,
    tuned: bool = False,
    cache: str = "{run}/cache.zarr",
    n_held_out_tokens: int = 2048,
    n_top: int = 5,
    config: str | None = None,
) -> Lens:
    """Show what a model would predict next from its stream after each block."""

@overload
def steer(
    config: SteerConfig,
    /,
) -> Steering:
    """Turn features of a dictionary up and down while the model writes."""

@overload
def steer(
    run: str = "runs/default",
    *,
    dictionary: str | None = None,
    features: list[int] = ...,
    n_features: int = 4,
    strengths: list[float] | None = None,
    max_cost: float = 0.1,
    prompts: list[str] | str = ...,
    reworded: list[str] | str | None = None,
    vocabulary: str | None = None,
    target: float = 0.05,
    n_suppressed: int = 64,
    max_new_tokens: int = 32,
    temperature: float = 0.7,
    seed: int = 0,
    device: str = "auto",
    config: str | None = None,
) -> Steering:
    """Turn features of a dictionary up and down while the model writes."""

@overload
def compare(
    config: CompareConfig,
    /,
) -> Comparison:
    """Compare two dictionaries of one hook: shared features, own features, and figures."""

@overload
def compare(
    first: str,
    second: str,
    *,
    run: str | None = None,
    cache: str = "{run}/cache.zarr",
    seed: int = 0,
    config: str | None = None,
) -> Comparison:
    """Compare two dictionaries of one hook: shared features, own features, and figures."""

@overload
def find(
    config: FindConfig,
    /,
) -> Found:
    """Find the features of a dictionary that fire in one text and not in another."""

@overload
def find(
    first: str,
    second: str | None = None,
    *,
    label: str | None = None,
    run: str = "runs/default",
    dictionary: str | None = None,
    name: str | None = None,
    n_features: int = 20,
    window: int = 32,
    max_tokens: int = 8192,
    seed: int = 0,
    device: str = "auto",
    config: str | None = None,
) -> Found:
    """Find the features of a dictionary that fire in one text and not in another."""

@overload
def probe(
    config: ProbeConfig,
    /,
) -> ProbeResults:
    """Find out what can be told from a model's activations, at which hooks."""

@overload
def probe(
    *,
    run: str = "runs/default",
    name: str = "default",
    model: ModelConfig | str | Mapping[str, object] = ...,
    tasks: list[str] | str = ...,
    text_column: str = "text",
    label_column: str = "label",
    hooks: list[str] | str = ...,
    dictionary: str | None = None,
    k: list[str] | str = ...,
    pools: list[str] | str = ...,
    n_train: int = 128,
    n_test: int = 128,
    max_tokens: int = 256,
    learning_curve: list[int] = ...,
    causal: bool = True,
    seed: int = 0,
    config: str | None = None,
    preset: str | None = None,
) -> ProbeResults:
    """Find out what can be told from a model's activations, at which hooks."""

@overload
def probe_edit(
    config: ProbeEditConfig,
    /,
) -> Path:
    """Save the direction of a probe as an edit file, to steer with it or to take it out."""

@overload
def probe_edit(
    results: str,
    out: str,
    *,
    task: str | None = None,
    hook_name: str | None = None,
    pool: str | None = None,
    do: str = "add",
    by: float | None = None,
    config: str | None = None,
) -> Path:
    """Save the direction of a probe as an edit file, to steer with it or to take it out."""

@overload
def patch(
    config: PatchConfig,
    /,
) -> PatchResults:
    """Find out which places of a model carry an answer: patching and attribution."""

@overload
def patch(
    clean: str = "The Eiffel Tower is in the city of",
    corrupt: str = "The Colosseum is in the city of",
    answer: str = " Paris",
    wrong: str = " Rome",
    *,
    run: str = "runs/default",
    name: str = "pair",
    model: ModelConfig | str | Mapping[str, object] = ...,
    slots: dict[str, list[str]] = ...,
    n_pairs: int = 16,
    pairs: list[dict[str, str]] = ...,
    table: str | None = None,
    sites: list[str] | str = ...,
    patches: list[str] | str = ...,
    methods: list[str] | str = ...,
    n_exact: int | None = None,
    ig_steps: int = 5,
    receivers: list[str] | str = ...,
    frozen: str = "all",
    dictionary: str | None = None,
    n_features: int = 16,
    batch_size: int = 64,
    seed: int = 0,
    config: str | None = None,
    preset: str | None = None,
) -> PatchResults:
    """Find out which places of a model carry an answer: patching and attribution."""

@overload
def patch_edit(
    config: PatchEditConfig,
    /,
) -> Path:
    """Save a place that patching has found as an edit file."""

@overload
def patch_edit(
    results: str,
    out: str,
    *,
    site: str,
    layer: int | None = None,
    position: int | None = None,
    head: int | None = None,
    feature: int | None = None,
    group: int = 0,
    config: str | None = None,
) -> Path:
    """Save a place that patching has found as an edit file."""

@overload
def patchscope(
    config: PatchscopeConfig,
    /,
) -> dict[str, Any]:
    """Ask a model what a hidden state of a text, or a feature of a dictionary, is."""

@overload
def patchscope(
    *,
    run: str = "runs/default",
    name: str | None = None,
    model: ModelConfig | str | Mapping[str, object] = ...,
    text: str | None = None,
    token: int = -1,
    at: list[str] | str = ...,
    dictionary: str | None = None,
    feature: int | None = None,
    scales: list[float] = ...,
    into: str | None = None,
    prompt: str = ...,
    placeholder: str = "?",
    max_new_tokens: int = 16,
    seed: int = 0,
    config: str | None = None,
) -> dict[str, Any]:
    """Ask a model what a hidden state of a text, or a feature of a dictionary, is."""

@overload
def export(
    config: ExportConfig,
    /,
) -> Path:
    """Write a dictionary, its feature tables and a card to a folder that others can load."""

@overload
def export(
    run: str = "runs/default",
    *,
    dictionary: str | None = None,
    format: str = "saelens",
    out: str | None = None,
    dtype: str = "float32",
    drop_dead: bool = False,
    cache: str = "{run}/cache.zarr",
    license: str | None = None,
    push: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    config: str | None = None,
) -> Path:
    """Write a dictionary, its feature tables and a card to a folder that others can load."""

@overload
def import_(
    config: ImportConfig,
    /,
) -> Dictionary:
    """Take a dictionary of another tool into a run."""

@overload
def import_(
    folder: str,
    *,
    run: str = "runs/default",
    name: str | None = None,
    format: str | None = None,
    cache: str = "{run}/cache.zarr",
    model_name: str | None = None,
    hook_name: str | None = None,
    hook_name_out: str | None = None,
    config: str | None = None,
) -> Dictionary:
    """Take a dictionary of another tool into a run."""

@overload
def demo(
    config: DemoConfig,
    /,
) -> dict[str, Any]:
    """Go the whole way with a small model: harvest, train, evaluate, analyze, steer, export."""

@overload
def demo(
    *,
    run: str = "runs/demo",
    harvest: HarvestConfig | Mapping[str, object] = ...,
    train: TrainConfig | Mapping[str, object] = ...,
    l1_coefficients: list[float] = ...,
    eval: EvalConfig | Mapping[str, object] = ...,
    analyze: AnalyzeConfig | Mapping[str, object] = ...,
    steer: SteerConfig | Mapping[str, object] = ...,
    config: str | None = None,
    preset: str | None = None,
) -> dict[str, Any]:
    """Go the whole way with a small model: harvest, train, evaluate, analyze, steer, export."""

@overload
def cache_info(
    config: CacheInfoConfig,
    /,
) -> None:
    """Show what is in a cache, where it is from, and the norms of its activations."""

@overload
def cache_info(
    cache: str,
    *,
    json: bool = False,
    config: str | None = None,
) -> None:
    """Show what is in a cache, where it is from, and the norms of its activations."""

@overload
def cache_verify(
    config: CacheVerifyConfig,
    /,
) -> bool:
    """Read every chunk of a cache and compare it with its checksum."""

@overload
def cache_verify(
    cache: str,
    *,
    config: str | None = None,
) -> bool:
    """Read every chunk of a cache and compare it with its checksum."""

@overload
def cache_merge(
    config: CacheMergeConfig,
    /,
) -> ActivationCache:
    """Make one cache of several that have the same model, tokenizer and hooks."""

@overload
def cache_merge(
    out: str,
    *,
    caches: list[str] | str,
    config: str | None = None,
) -> ActivationCache:
    """Make one cache of several that have the same model, tokenizer and hooks."""

@overload
def cache_sample(
    config: CacheSampleConfig,
    /,
) -> ActivationCache | None:
    """Show random sequences of a cache as text, or write them as a smaller cache."""

@overload
def cache_sample(
    cache: str,
    *,
    n: int | None = None,
    seed: int = 0,
    out: str | None = None,
    config: str | None = None,
) -> ActivationCache | None:
    """Show random sequences of a cache as text, or write them as a smaller cache."""

@overload
def cache_export(
    config: CacheExportConfig,
    /,
) -> int:
    """Write a cache as a Hugging Face data set that SAELens trains from."""

@overload
def cache_export(
    cache: str,
    out: str,
    *,
    hook_names: list[str] | str | None = None,
    held_out: bool | str = False,
    config: str | None = None,
) -> int:
    """Write a cache as a Hugging Face data set that SAELens trains from."""

@overload
def cache_import(
    config: CacheImportConfig,
    /,
) -> ActivationCache:
    """Make a cache from a data set that SAELens's CacheActivationsRunner wrote."""

@overload
def cache_import(
    folder: str,
    out: str,
    *,
    model_name: str,
    held_out_fraction: float = 0.1,
    dtype: str = "float16",
    special_token_ids: list[int] = ...,
    config: str | None = None,
) -> ActivationCache:
    """Make a cache from a data set that SAELens's CacheActivationsRunner wrote."""

@overload
def edit_check(
    config: EditCheckConfig,
    /,
) -> Edits:
    """Say what is wrong with an edit file, and what each edit amounts to in all units."""

@overload
def edit_check(
    file: str,
    *,
    model_name: str | None = None,
    out: str | None = None,
    raw: bool = False,
    config: str | None = None,
) -> Edits:
    """Say what is wrong with an edit file, and what each edit amounts to in all units."""

@overload
def edit_export(
    config: EditExportConfig,
    /,
) -> Path:
    """Write the edits of a file for llama.cpp, for repeng, or for EasySteer on vLLM."""

@overload
def edit_export(
    file: str,
    out: str,
    *,
    model_name: str | None = None,
    first_token: bool = False,
    config: str | None = None,
) -> Path:
    """Write the edits of a file for llama.cpp, for repeng, or for EasySteer on vLLM."""

@overload
def edit_bake(
    config: EditBakeConfig,
    /,
) -> Path:
    """Write a checkpoint that has the edits of a file in its weights, for any engine to run."""

@overload
def edit_bake(
    file: str,
    out: str,
    *,
    model_name: str | None = None,
    first_token: bool = False,
    config: str | None = None,
) -> Path:
    """Write a checkpoint that has the edits of a file in its weights, for any engine to run."""

@overload
def atlas_export(
    config: AtlasExportConfig,
    /,
) -> Path:
    """Write an atlas in the form of another tool."""

@overload
def atlas_export(
    atlas: str,
    out: str,
    *,
    format: str = "neuronpedia",
    model_id: str | None = None,
    source: str | None = None,
    fold: bool = True,
    creator: str = "sae-atlas",
    creator_id: str = "clkht01d40000jv08hvalcvly",
    config: str | None = None,
) -> Path:
    """Write an atlas in the form of another tool."""

@overload
def atlas_import(
    config: AtlasImportConfig,
    /,
) -> Atlas:
    """Make an atlas, with its tables and pages, from the dashboards of another tool."""

@overload
def atlas_import(
    folder: str,
    out: str,
    *,
    config: str | None = None,
) -> Atlas:
    """Make an atlas, with its tables and pages, from the dashboards of another tool."""
