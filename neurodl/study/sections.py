"""The sections and keys of a study file: what may stand there, and what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FILE = "file"  # marks keys that name files: made absolute, and checked to exist
SPECIAL = ("auto", "none")  # values of such keys that are no files
# Section and key of what may be a list in a study file, which makes it a sweep.
SWEPT = (("dataset", "subject"), ("bids", "subject"), ("features", "backbone"))

File = Annotated[str, FILE]
Files = Annotated[str | list[str], FILE]


def _key(meaning: str, default: Any = None) -> Any:
    return Field(default, description=meaning)


class Section(BaseModel):
    """A table of a study file: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StudySection(Section):
    """What the study is called, and where its results go."""

    name: str = Field(description="a name, for the results folder and the report", min_length=1)
    title: str | None = _key("the report's title")
    seed: int = _key("a whole number: the seed of the folds and of everything random", 0)
    output: str | None = _key(
        "a folder or a URL for the results; results/<name> beside the study file"
    )


class StimuliSection(Section):
    """What was shown: images or videos."""

    path: Files = Field(description="a folder, .zip, .npz, .tsv, .csv, or list of files")
    ids: Files | None = _key("a text file with one id per line, or a list of ids")
    key: str | None = _key("the name of an array in an .npz file")
    n_frames: int | None = _key("a whole number: frames decoded per video")
    fps: float | None = _key("a number: frames decoded per second, in place of n_frames")
    value_range: list[float] | None = _key("two numbers: which values are black and white")


class ResponsesSection(Section):
    """What was recorded, in files of your own."""

    path: Files = Field(description="a .npy, .npz, .nc, .tsv, .csv or NIfTI file, or list of runs")
    dims: list[str] | None = _key("a list of the dims as stored, such as ['unit', 'stimulus']")
    key: str | None = _key("the name of an array in an .npz file")
    ids: Files | None = _key("a text file with the stimulus id of each row, or a list of ids")
    units: str | None = _key("the units, such as 'spikes / s'")
    subject: str | None = _key("the subject's label, as text")
    tr: float | None = _key("a number: the repetition time [s]")
    bin_width: float | None = _key("a number: the width of time bins [s]")
    roi: Files | None = _key("a text file with one ROI per target, or a list of them")
    mask: File | None = _key("for NIfTI: a mask or atlas image, or 'auto'")
    atlas_labels: File | None = _key("a .tsv with columns index and name, for an atlas as mask")
    runs: list[str] | None = _key("a list of labels, one per run or volume")
    detrend: bool | int | None = _key("true, false or the order of a polynomial per run")
    zscore: bool | None = _key("true or false: z-score each voxel per run")
    space: str | None = _key("the space of the images, such as 'MNI152NLin2009cAsym'")
    events: Files | None = _key("an events.tsv, or a list with one per run")


class DatasetSection(Section):
    """A dataset by name; see `neurodl datasets`."""

    name: str = Field(description="the name of a dataset")
    root: File | None = _key("the folder that holds its files")
    subject: str | int | None = _key("the subject's number or label")
    roi: str | list[str] | None = _key("a region, or a list of them")
    stack: bool = _key("true or false: average the repeats of a stimulus", True)
    options: dict[str, Any] = _key("a table of the dataset's own options", {})


class BidsSection(Section):
    """One subject and task of a BIDS folder."""

    root: File = Field(description="the BIDS folder")
    subject: str = Field(description="the subject's label, as text: '01'")
    task: str = Field(description="the task's label")
    session: str | None = _key("the label of one session")
    runs: list[str] | None = _key("a list of run labels")
    derivatives: str | None = _key("a folder of preprocessed runs, 'auto' or 'none'", "auto")
    space: str | None = _key("an output space of fMRIPrep")
    filters: dict[str, str] | None = _key("a table of further entities of the file names")
    mask: File = _key("a mask or atlas image, or 'auto'", "auto")
    atlas_labels: File | None = _key("a .tsv with columns index and name, for an atlas as mask")
    confounds: list[str] | None = _key("a list of nilearn's strategies, such as ['motion']")
    confounds_options: dict[str, Any] | None = _key("a table of options of load_confounds")
    detrend: bool | int | None = _key("true, false or the order of a polynomial per run")
    zscore: bool | None = _key("true or false: z-score each voxel per run")
    tr: float | None = _key("a number: the repetition time [s]")


class BetasSection(Section):
    """One response per event, estimated from the time series."""

    method: Literal["lss", "lsa"] = _key("'lss' or 'lsa'", "lss")
    hrf: Literal["glover", "spm"] = _key("'glover' or 'spm'", "glover")
    drift: Literal["cosine", "polynomial", "none"] = _key(
        "'cosine', 'polynomial' or 'none'", "cosine"
    )
    high_pass: float = _key("a number: the slowest cosine left in [Hz]", 0.01)
    drift_order: int = _key("a whole number: the order of the polynomial", 1)
    noise_model: Literal["ols", "ar1"] = _key("'ols' or 'ar1'", "ols")
    percent: bool = _key("true or false: express runs in per cent of their mean first", False)
    slice_time_ref: float | None = _key("a number from 0 to 1: when in a TR the volumes stand for")
    zscore: bool = _key("true or false: z-score the betas of each run", False)
    stack: bool = _key("true or false: average the repeats of a stimulus", True)


class FeaturesSection(Section):
    """One feature space, or one network with several layers."""

    label: str | None = _key("a name for the results; by default the backbone")
    backbone: str | None = _key("a name such as 'timm:resnet50.a1_in1k', 'gabor' or 'pixels'")
    weights: File | None = _key("a .safetensors, .pth or .pt file")
    pretrained: bool = _key("true, or false for an untrained control", True)
    seed: int | None = _key("a whole number: the seed of untrained weights")
    layers: str | list[str] | None = _key(
        "a list of dotted module names or patterns; or 'all', 'blocks', 'every:3'"
    )
    kernel: bool = _key("true: the kernel of whole feature maps, in place of features", False)
    memory: float | Literal["auto"] = _key("'auto' or a number: of a kernel's block [GiB]", "auto")
    pool: str = Field(
        description="how maps are pooled, such as 'spatial:7'; by default kernels do not",
        default_factory=lambda given: "flatten" if given.get("kernel") else "spatial:7",
    )
    time: Literal["mean", "keep"] = _key("of videos: 'mean' over time, or 'keep' frames", "mean")
    reduce: str = _key("'none', 'sparse:5000', 'sparse:auto' or 'pca:100'", "none")
    reduce_fit: Files | None = _key("of 'pca': a text file or a list of training stimuli's ids")
    transform: dict[str, Any] | None = _key("a table of values that replace the weights' own")
    options: dict[str, Any] = _key("a table of options of the network", {})
    concatenate: bool = _key("true adds a layer 'all' with all others side by side", False)
    path: File | None = _key("features saved as .zarr or .nc, in place of a backbone")
    design: Literal["glover", "spm", "fir"] | None = _key(
        "'glover', 'spm' or 'fir': events as features, in place of a backbone"
    )
    column: str = _key("the column of the events that tells conditions apart", "trial_type")
    delays: list[int] | None = _key("a list of whole numbers: lags of 'fir' [TR]")


class ModelSection(Section):
    """The encoding model; which keys it has depends on its name."""

    name: Literal[
        "ridge",
        "kernel_ridge",
        "banded_ridge",
        "stacked_ridge",
        "pls",
        "reduced_rank_ridge",
        "fractional_ridge",
        "poisson_ridge",
        "sequence_encoder",
    ] = _key(
        "'ridge', 'kernel_ridge', 'banded_ridge', 'stacked_ridge', 'pls', 'reduced_rank_ridge', "
        "'fractional_ridge', 'poisson_ridge' or 'sequence_encoder'",
        "ridge",
    )
    pca: int | None = _key("a whole number: principal components, fitted in each fold, come first")
    alphas: Literal["auto"] | list[float] = _key("'auto' or a list of numbers: penalties", "auto")
    cv: int = _key("a whole number: inner folds", 5)
    scoring: Literal["r2", "r"] = _key("'r2' or 'r'", "r2")
    standardize: bool = _key("true or false", True)
    sd_floor: float = _key("a number: see RidgeCV", 0.1)
    delays: list[int] | None = _key("a list of whole numbers: lags of features [samples]")
    centre: Literal["all", "runs"] = _key("'all' or 'runs': whose mean is taken off", "all")
    kernel: Literal["linear", "rbf", "cosine", "precomputed"] = Field(
        description="'linear', 'rbf', 'cosine', or 'precomputed' for features that are kernels",
        default_factory=lambda given: "rbf" if given.get("name") == "kernel_ridge" else "linear",
    )
    gamma: float | Literal["auto"] = _key("'auto' or a number: the width of 'rbf'", "auto")
    bands: dict[str, int] | None = _key("a table of the number of features of each band")
    alphas_by_band: list[float] | None = _key("a list of numbers: see BandedRidgeCV")
    refine: int = _key("a whole number: see BandedRidgeCV", 1)
    combine: Literal["stack", "select"] = _key("'stack' or 'select': see StackedRidgeCV", "stack")
    regions: str | None = _key("a coord of the targets, such as 'roi': see StackedRidgeCV")
    n_components: Literal["auto"] | int | list[int] = _key(
        "'auto', a whole number or a list of them: see PLS", "auto"
    )
    targets: Literal["joint", "each"] = _key("'joint' or 'each': see PLS", "joint")
    ranks: Literal["auto"] | int | list[int] = _key(
        "'auto', a whole number or a list of them: see ReducedRankRidgeCV", "auto"
    )
    fractions: Literal["auto"] | list[float] = _key(
        "'auto' or a list of numbers from 0 to 1: see FractionalRidgeCV", "auto"
    )
    cell: Literal["gru", "rnn", "lstm", "transformer"] = _key(
        "'gru', 'rnn', 'lstm' or 'transformer': see SequenceEncoder, also for the keys below", "gru"
    )
    loss: Literal["poisson", "mse"] = _key("'poisson' for counts, or 'mse'", "poisson")
    hidden_size: int = _key("a whole number: states", 32)
    n_layers: int = _key("a whole number: layers of states", 1)
    bidirectional: bool = _key("true or false: whether predictions know what comes later", False)
    dropout: float = _key("a number from 0, below 1", 0.0)
    lr: float = _key("a number: the learning rate", 5e-3)
    weight_decay: float = _key("a number from 0", 1e-3)
    batch_size: int = _key("a whole number: sequences in a step", 32)
    max_epochs: int = _key("a whole number", 300)
    patience: int = _key("a whole number: epochs without improvement", 20)
    validation: float = _key("a number from 0, below 1: the share of runs that stops training", 0.1)
    max_length: int | None = _key("a whole number: longer runs are cut in training [samples]")


class CvSection(Section):
    """The outer folds."""

    folds: int | Literal["leave-one-group-out"] = _key("a whole number or 'leave-one-group-out'", 5)
    groups: str | None = _key("a coord of the responses to keep together, such as 'run'")
    allow: list[str] = _key("a list of the auditor's checks whose findings are accepted", [])


class RunSection(Section):
    """Where and how it runs."""

    device: str = _key("'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'", "auto")
    batch_size: int | Literal["auto"] = _key("a whole number or 'auto'", "auto")
    amp: bool | None = _key("true or false: mixed precision; by default on GPUs")
    cache: bool | str | None = _key(
        "a folder for features, and scores of layers that are done; false for none"
    )
    on_unreadable: Literal["raise", "skip"] = _key("'raise' or 'skip'", "raise")
    unpaired: Literal["error", "drop"] = _key("'error' or 'drop'", "error")
    keep_predictions: bool | Literal["auto"] = _key(
        "true, false, or 'auto' for up to 64 MiB: predictions, for examples and tests", "auto"
    )


class ClusterSection(Section):
    """The workers of ``neurodl run --on dask``; it changes no result."""

    kind: Literal["local", "slurm"] = _key("'local' for this machine, or 'slurm'", "local")
    workers: int | None = Field(
        None,
        description="a whole number: studies at once; by default one, or as many as GPUs or jobs",
        ge=1,
    )
    cores: int | None = Field(
        None, description="a whole number: cores of a worker; by default all, shared", ge=1
    )
    memory: str | None = Field(
        None,
        description="a text such as '32GB': what a worker may plan with, or SLURM's limit",
        pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$",
    )
    gpus: int = Field(0, description="a whole number: GPUs of a worker", ge=0)
    partition: str | None = Field(
        None, description="for SLURM: the partition", pattern=r"^[\w.,-]+$"
    )
    account: str | None = Field(None, description="for SLURM: the account", pattern=r"^[\w.-]+$")
    walltime: str = Field(
        "08:00:00",
        description="for SLURM: how long a worker may run, as 'days-hours:minutes:seconds'",
        pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$",
    )


class Study(Section):
    """A whole study file; made by `load_study`."""

    study: StudySection
    stimuli: StimuliSection | None = None
    responses: ResponsesSection | None = None
    dataset: DatasetSection | None = None
    bids: BidsSection | None = None
    betas: BetasSection | None = None
    features: list[FeaturesSection] = Field(min_length=1)
    model: ModelSection = ModelSection()
    cv: CvSection = CvSection()
    run: RunSection = RunSection()
    cluster: ClusterSection | None = None

    def labels(self) -> list[str]:
        """Return the name of each feature entry in the results."""
        return [entry.label or entry.backbone or _stem(entry) for entry in self.features]


def _stem(entry: FeaturesSection) -> str:
    """Return the default label of features without a backbone."""
    if entry.path:
        return entry.path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return entry.design or "features"
