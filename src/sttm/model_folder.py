"""Check a model folder before anything is built from it, and the model against the folder's tensors afterwards."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttm.backbones.config_check import AGAIN, Header, make_config
from sttm.config.parsing import read_json
from sttm.errors import SttmError, few, first_line, shown
from sttm.patching.saving import INNER, INNER_TYPE, MERGER, MODEL_TYPE, PLAN_FILE, merger_names, read_plan

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sttm.patching.plan import Plan

ADAPTER = "adapter_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Types that a model's weights may have, by their names in safetensors.
FLOATS = {"F64", "F32", "F16", "BF16"}
#: Parts of a pre-training model that a classifier does not have.
PRETRAINING = ("decoder", "encoder_to_decoder", "predictor", "mask_token", "position_ids")


@dataclass(frozen=True)
class ModelFolder:
    """A folder whose files, config and plan are sound.

    Attributes:
        path: the folder.
        architecture: the class that the model was saved from, as its config says; "" where it does not.
        kind: the model type of transformers.
        config: the model's own config, of its family's class.
        plan: the plan of its mergers; None for a plain model.
        header: the type and the shape of every tensor of the weights.
    """

    path: Path
    kind: str
    config: Any
    plan: Plan | None
    header: Header
    architecture: str = ""

    @cached_property
    def auto_class(self) -> Any:
        """Transformers' auto class for the classifier: that of pictures if its type has no other."""
        from transformers.models.auto import modeling_auto as auto

        of_videos = self.kind in auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES
        of_pictures = self.kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES and not of_videos
        return auto.AutoModelForImageClassification if of_pictures else auto.AutoModelForVideoClassification

    @cached_property
    def model_class(self) -> Any:
        """The class of transformers that the folder was saved from, where a family has it; else `auto_class`."""
        import transformers

        from sttm.backbones import known_classes

        named = getattr(transformers, self.architecture, None) if self.architecture in known_classes() else None
        return named if named is not None and isinstance(self.config, named.config_class) else self.auto_class

    def check_model(self, model: nn.Module) -> None:
        """Check a model that was loaded from the folder, mergers included: see `check_weights`."""
        check_weights(model, self.header, self.path)


def open_folder(folder: Path) -> ModelFolder:
    """Return a model folder, once all that can be checked without building the model is.

    Raises:
        SttmError: for a missing or damaged file, a setting that cannot be, or a plan that does not fit.
    """
    check_files(folder)
    file = folder / "config.json"
    values = read_json(file)
    header = read_header(folder)
    merged = values.get("model_type") == MODEL_TYPE
    if merged and not isinstance(values.get(INNER), dict):
        raise SttmError(f"{file} has {INNER}={shown(values.get(INNER))}, not the config of a model; {AGAIN}")
    if merged and not (folder / PLAN_FILE).is_file():
        raise SttmError(f"{folder} says that it was saved merged and has no {PLAN_FILE}; save the model again")
    if not merged and (folder / PLAN_FILE).exists():
        raise SttmError(
            f"{folder} has a {PLAN_FILE} and the config.json of a plain model; save the merged model again, or remove "
            f"{PLAN_FILE} to load the plain one"
        )
    kind = values.get(INNER_TYPE) if merged else values.get("model_type")
    own = {**values[INNER], **{key: values[key] for key in ("dtype",) if key in values}} if merged else values
    config = make_config(kind, own, file, header)
    named = own.get("architectures")
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    plan = read_plan(folder / PLAN_FILE) if merged else None
    return ModelFolder(folder, config.model_type, config, plan, header, architecture)


def check_files(folder: Path) -> None:
    """Raise SttmError, one sentence for each way in which a folder is not a model."""
    if (folder / ADAPTER).is_file():  # with peft installed, transformers would load the base that it names
        raise SttmError(
            f"{folder} holds an adapter of PEFT ({ADAPTER}), not a whole model; load it with peft where you trust it, "
            "call merge_and_unload, and save that model with save_pretrained into a folder of its own"
        )
    if not (folder / "config.json").is_file():
        raise SttmError(f"{folder} is not a model folder: it has no config.json; give a folder that transformers saved")
    if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
    if pickles:
        raise SttmError(
            f"{folder} holds its weights as {pickles[0]}, a pickle that could run code when loaded, and only "
            "safetensors are; load it with transformers where you trust it and save it again with save_pretrained"
        )
    raise SttmError(f"{folder} has a config.json but no weights; it should hold a {WEIGHTS}")


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors that hold a model's weights: one file, or those that its index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = read_json(folder / INDEX).get("weight_map")
    names = sorted({str(name) for name in index.values()}) if isinstance(index, dict) else []
    wrong = [name for name in names if not _is_file_of(folder, name)]
    if wrong or not names:
        raise SttmError(f"{folder / INDEX} names {shown(wrong[0]) if wrong else 'no file'}, not in the folder; {AGAIN}")
    return [folder / name for name in names]


def _is_file_of(folder: Path, name: str) -> bool:
    """Return whether this is the name of a file in a folder; a path is not, nor what no file can be called."""
    try:
        return Path(name).name == name and len(name.encode()) <= 255 and (folder / name).is_file()
    except UnicodeEncodeError:
        return False


def read_header(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and the shape of every tensor of a model's weights; raise SttmError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    header: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as weights:
                slices = {name: weights.get_slice(name) for name in weights.keys()}
                header |= {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise SttmError(f"cannot load the weights in {path}: {first_line(error)[:200]}; {AGAIN}") from error
    if not header:
        raise SttmError(f"{folder / WEIGHTS} holds no tensor; {AGAIN}")
    return header


def read_tensors(folder: Path, names: Container[str]) -> dict[str, Tensor]:
    """Return those of the named tensors that the safetensors of a folder hold."""
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as weights:
            found |= {name: weights.get_tensor(name) for name in weights.keys() if name in names}
    return found


# --- The model ----------------------------------------------------------------------------------------------


def check_loaded(info: Mapping[str, Any], model: nn.Module, folder: Path, name: object) -> None:
    """Check what transformers says of the tensors that it loaded: none missing, left over, or of another shape.

    Raises:
        SttmError: naming the first few.
    """
    # What V-JEPA 2 was pre-trained with takes no part in a classifier's forward.
    missing = {str(key) for key in info["missing_keys"] if "predictor" not in str(key).split(".")}
    if missing:
        head = " and so no head that classifies" if any(key.startswith("classifier.") for key in missing) else ""
        advice = "use a checkpoint that was fine-tuned for classification"
        raise SttmError(f"{name} has no trained weights for {few(missing)}{head}; {advice}")
    if wrong := sorted(info.get("mismatched_keys", ())):
        raise SttmError(f"{name} has {mismatch(wrong[0])}; {AGAIN}")
    if unused := unexpected(info, model, folder):
        raise SttmError(f"{name} has tensors that its config gives no place to ({few(unused)}); {AGAIN}")
    if errors := info.get("error_msgs"):
        raise SttmError(f"cannot load a model from {name}: {str(errors[0]).strip().splitlines()[0][:200]}; {AGAIN}")


def mismatch(wrong: Any) -> str:
    """Return in words a tensor of another shape, as transformers lists it."""
    key, found, wanted = wrong
    return f"{key} of shape {tuple(found)} and the model needs {tuple(wanted)}"


def unexpected(info: Mapping[str, Any], model: nn.Module, folder: Path) -> set[str]:
    """Return the tensors that were left over, but for parts that only pre-training has and tables that are computed."""
    names = "pooler" in " ".join(name for name, _ in model.named_modules())
    parts = PRETRAINING if names else (*PRETRAINING, "pooler")
    unused = {str(key) for key in info["unexpected_keys"] if not _is_part(str(key), parts)}
    if not unused:
        return unused
    found = read_tensors(folder, unused)
    return {key for key in unused if key not in found or not _computes(model, key, found[key])}


def _is_part(key: str, parts: tuple[str, ...]) -> bool:
    return any(part.startswith(parts) for part in key.split("."))


def _computes(model: nn.Module, key: str, stored: Tensor) -> bool:
    """Return whether a model holds the same values under this name outside its state, as it computed them itself."""
    value: Any = model
    for part in key.split("."):
        value = getattr(value, part, None)
    return hasattr(value, "shape") and value.shape == stored.shape and value.allclose(stored.to(value), atol=1e-5)


def check_weights(model: nn.Module, header: Header, name: object, new: Container[str] = ()) -> None:
    """Check the tensors of a model against the header that they came from: no merger left over, types, finite numbers.

    Args:
        new: names of tensors that were not loaded.

    Raises:
        SttmError: naming the first few.
    """
    state = model.state_dict()
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    names = merger_names(model, header)
    if unused := {key for key in header if MERGER in key and key not in names}:
        raise SttmError(f"{name} has mergers that {PLAN_FILE} does not name ({few(unused)}); save the model again")
    whole = {key: dtype for key, (dtype, _) in header.items() if dtype not in FLOATS and not _is_part(key, PRETRAINING)}
    for key, dtype in whole.items():
        tensor = state.get(names.get(key, key), state.get(key.removeprefix(prefix)))
        if tensor is None or tensor.is_floating_point():
            raise SttmError(f"{name} has {key} as {dtype}, which is no type of weights; {AGAIN}")
    loaded = {key: tensor for key, tensor in state.items() if tensor.is_floating_point() and key not in new}
    wrong = {key for key, tensor in loaded.items() if not bool(tensor.isfinite().all())}
    if wrong:
        raise SttmError(f"{name} has weights that are not finite ({few(wrong)}); use another checkpoint")
