"""From a name, a folder or a hub id to a model ready to run; saving and loading merged models.

`sttm.patching.saving` says what a folder of a merged model holds. Nothing that is loaded can execute code: weights are
safetensors only.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttm.errors import SttmError, did_you_mean, few, first_line, quoted
from sttm.model_folder import ModelFolder, check_files, check_loaded, mismatch, open_folder, read_header, read_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from sttm.data.transforms.preprocess import Preprocess
    from sttm.patching.plan import Plan

_BUNDLE = Path(__file__).parent / "bundled"
#: Short videos that come with the package.
EXAMPLES = _BUNDLE / "examples"
#: The small models that come with the package; each folder has a model card.
BUNDLED = {
    "sttm-motion": "small VideoMAE with the learned merger, trained on synthetic videos of 18 motions",
    "sttm-motion-plain": "its plain twin, from the same start",
    "sttm-words": "small VideoMAE with the learned merger, trained on 26 words read from the lips of one speaker",
    "sttm-words-plain": "its plain twin, trained on from its weights",
}
DEFAULT = "sttm-motion"


def resolve(name: str | Path) -> Path:
    """Return the local folder of a model: one of `BUNDLED`, a folder, or a hub id (downloaded once, then cached).

    Raises:
        SttmError: if there is no such model, or its folder lacks what a model needs.
    """
    folder = _BUNDLE / str(name) if str(name) in BUNDLED else Path(name)
    if not folder.is_dir():
        folder = _download(str(name))
    check_files(folder)
    return folder


def load(name: str | Path = DEFAULT) -> Any:
    """Load a model in eval mode, merged if it was saved merged: one that classifies, unless its config says otherwise.

    Args:
        name: one of the bundled models, a folder, or a hub id.

    Raises:
        SttmError: if the model is missing, has no safetensors weights or no trained head, or is of no known family.
    """

    from sttm.backbones import backbone_of

    folder = open_folder(resolve(name))
    model, info = build(folder, f"load a model from {name}", kind=folder.model_class)
    check_loaded(info, model, folder.path, name)
    backbone_of(model)
    if folder.plan is not None:
        install_saved(model, folder.path, folder.plan)
    folder.check_model(model)
    return model.eval()


def build(
    folder: ModelFolder, what: str, advice: str = "", config: Any = None, kind: Any = None
) -> tuple[Any, dict[str, Any]]:
    """Return the plain model of a folder and what transformers says of its tensors, those of mergers left aside.

    Args:
        what, advice: what this is for and what to do if it fails, for messages.
        config: in place of the folder's own.
        kind: the class of the model; left out, the one that classifies.
    """
    from sttm.patching.saving import MERGER

    with quiet(), explained(what, advice):
        model, info = (kind or folder.auto_class).from_pretrained(
            folder.path, config=config or folder.config, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, local_files_only=True, trust_remote_code=False,
        )  # fmt: skip
    if folder.plan is not None:
        info["unexpected_keys"] = {key for key in info["unexpected_keys"] if MERGER not in key}
    return model, info


def load_with_preprocess(name: str | Path = DEFAULT) -> tuple[Any, Preprocess]:
    """Load a model and the preprocessing that its folder describes; see `load`."""
    from sttm.backbones import backbone_of
    from sttm.data.transforms.preprocess import Preprocess

    model = load(name)
    if not backbone_of(model).classifies(model):
        raise SttmError(
            f"{name} is a {type(model).__name__}, which has no head that classifies; give a model that was fine-tuned "
            "for classification"
        )
    return model, Preprocess.from_folder(resolve(name))


def bring_to_compute(model: nn.Module, compute: float | None, method: str = "sttm", **options: Any) -> Plan | None:
    """Bring a model, plain or merged, to `compute` of its plain multiply-adds; mergers that meet it already stay.

    Args:
        compute: the share to spend; None keeps the model as it is.
        options: what `sttm.apply` takes besides, such as `learned` or `layers`.

    Returns:
        The plan of the model, or None where it is plain.

    Raises:
        SttmError: as `sttm.apply` does; the model is then plain.
    """
    from sttm.patching import api

    own = api.plan_of(model) if api.is_merged(model) else None
    if compute is None or (own is not None and own.meets(compute, method, **options)):
        return own
    if own is not None:
        api.remove(model)
    return api.apply(model, compute, method, **options)


def plain_twin(model: nn.Module, name: str | Path = "") -> tuple[nn.Module, str]:
    """Return what to compare a merged model with, and in words what it is; the model itself stays merged.

    That is the plain twin of a bundled model that was trained merged, `name`-plain, or else the model without its
    mergers, with which it shares its weights.
    """
    from sttm.patching import api

    if f"{name}-plain" in BUNDLED and api.plan_of(model).learned:
        return load(f"{name}-plain").to(next(model.parameters()).device), f"{name}-plain"
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    api.remove(twin)
    return twin, "the same weights"


def install_saved(model: nn.Module, folder: Path, plan: Plan, *, strict: bool = True) -> set[str]:
    """Put the mergers of a saved model, with their weights, into the plain model.

    Returns:
        The names of the mergers' tensors that the folder has no weights for; none where `strict`.

    Raises:
        SttmError: if the plan or the weights do not fit the model, or, where `strict`, weights are missing.
    """
    from sttm.patching import api
    from sttm.patching.saving import PLAN_FILE, check_plan

    check_plan(plan, model, folder / PLAN_FILE)
    with explained(f"put the mergers of {folder / PLAN_FILE} into the model", "; save the model again"):
        api.install(model, plan)
    missing = _load_mergers(model, folder)
    if missing and strict:
        raise SttmError(f"{folder} has no weights for {few(missing)}; save the model again")
    return missing


def save(
    model: Any, folder: str | Path, weights: dict[str, Tensor] | None = None, *, overwrite_card: bool = False
) -> Path:
    """Save a model, merged or plain, so that `load` gives it back exactly, with a model card for the hub (README.md).

    With a plan of no mergers (compute=1) it is a plain model, and comes back as one.

    Args:
        weights: a state dict to save instead of the model's own, say an average, or one gathered from its shards.
        overwrite_card: writes the card even where the folder has a README.md that a person wrote or edited.

    Raises:
        SttmError: if the folder cannot be written, or `load` would not know the model.
    """
    from sttm.backbones import backbone_of
    from sttm.model_card import write_card
    from sttm.patching import api
    from sttm.patching.saving import PLAN_FILE

    folder, model = Path(folder), api.unwrap(model)
    if not hasattr(type(model), "save_pretrained"):
        raise SttmError(
            f"a {type(model).__name__} is no model of transformers, whose folders sttm.save writes; keep its state_dict"
        )
    backbone_of(model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            model.save_pretrained(folder, state_dict=weights, save_original_format=False)
        if not (api.is_merged(model) and api.plan_of(model).mergers):
            (folder / PLAN_FILE).unlink(missing_ok=True)
        write_card(model, folder, overwrite=overwrite_card)
    except OSError as error:
        raise SttmError(f"cannot save a model to {folder}: {error.strerror or error}; choose another folder") from error
    return folder


@contextmanager
def explained(what: str, advice: str = "") -> Iterator[None]:
    """Turn the errors of transformers for a bad checkpoint or config into one SttmError."""
    try:
        yield
    except SttmError:
        raise
    except Exception as error:  # there is no saying what transformers raises for settings that contradict each other
        raise SttmError(f"cannot {what}: {first_line(error)[:200]}{advice}") from error


def _download(name: str) -> Path:
    """Return the local copy of a hub model: safetensors, json and the model card only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    near = did_you_mean(name, BUNDLED)
    missing = (
        f"no model {quoted(name)!r} here or on the hub; {near}{' ' if near else ''}give one of "
        f"{', '.join(BUNDLED)}, a folder, or a hub id such as "
        "MCG-NJU/videomae-base-finetuned-kinetics (a first download needs the network)"
    )
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise SttmError(missing)
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "README.md"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise SttmError(missing) from error


def _load_mergers(model: nn.Module, folder: Path) -> set[str]:
    """Load the weights of the mergers, which transformers passes over; return the names of those that are missing."""
    from sttm.patching.saving import MERGER, merger_names

    names = merger_names(model, read_header(folder))
    found = {names[name]: tensor for name, tensor in read_tensors(folder, names).items()}
    own = model.state_dict()
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise SttmError(f"{folder} has {mismatch((name, tensor.shape, own[name].shape))}; save the model again")
    with explained(f"load the mergers of {folder}", "; save the model again"):
        model.load_state_dict(found, strict=False)
    return {name for name in own if MERGER in name} - found.keys()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting the mergers' weights as unexpected, and from drawing progress bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
