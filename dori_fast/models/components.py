"""The components of a model as its files, or its pipeline in memory, name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dori_fast.errors import UsageError
from dori_fast.models.files.directory import open_json, text_config

# where a pipeline and a directory have the configuration of a component
_CONFIGS = {
    "unet": "unet/config.json",
    "text_encoder": "text_encoder/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "vae": "vae/config.json",
}
# read without a model_index.json
_STOCK = (*_CONFIGS, "tokenizer", "tokenizer_2")
_LIBRARIES = ("diffusers.", "transformers.")


@dataclass(frozen=True)
class Components:
    """The parts of a model, by the names of diffusers' components.

    Attributes:
        where: the directory or the pipeline, for messages.
        pipeline: class name of the pipeline; None for a directory without model_index.json.
        options: the pipeline's own options, such as ``force_zeros_for_empty_prompt``.
        classes: class name of each component that is present. A class of neither diffusers nor
            transformers has its module in front, so that no name stands for two classes.
        configs: configuration of each component that has one.
        derived: class of the caller's own by component (or ``pipeline``), if ``classes`` has the
            library's class that it is derived from.
        missing: class of each component that model_index.json lists and that has no folder.
        modules: the components themselves, for a pipeline in memory; else empty.
    """

    where: str
    pipeline: str | None
    options: Mapping[str, Any]
    classes: Mapping[str, str]
    configs: Mapping[str, Mapping[str, Any]]
    derived: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of_directory(directory: Path, unet_home: Path | None = None) -> Components:
        """The components of a diffusers directory, by its JSON files alone.

        Args:
            directory: the model's directory.
            unet_home: directory with the folder ``unet``, if it is another one.

        Raises:
            UsageError: a JSON file is missing or unreadable, or two of them contradict each other.
        """
        home = {"unet": unet_home or directory}
        index = _index_of(directory)
        listed = _listed_classes(index)
        there = [n for n in listed or _STOCK if (home.get(n, directory) / n).is_dir()]
        configs = {
            n: open_json(home.get(n, directory), _CONFIGS[n]) for n in there if n in _CONFIGS
        }
        classes = {n: _class_of(n, configs.get(n, {}), listed.get(n), directory) for n in there}
        configs = {n: text_config(c) if "text_encoder" in n else c for n, c in configs.items()}
        options = {n: v for n, v in index.items() if not isinstance(v, list) and n[0] != "_"}
        pipeline = index.get("_class_name")
        missing = {name: kind for name, kind in listed.items() if name not in there}
        return Components(str(directory), pipeline, options, classes, configs, missing=missing)

    @staticmethod
    def of_pipeline(pipe: Any) -> Components:
        """The components of a diffusers pipeline in memory.

        Raises:
            UsageError: not a pipeline.
        """
        from diffusers import DiffusionPipeline

        # its declared type lacks what every pipeline has
        kind: Any = DiffusionPipeline
        if not isinstance(pipe, kind):
            raise UsageError(f"load: {_not_a_pipeline(pipe)}")
        config = dict(pipe.config)
        # (library, class) of each component, where it was registered
        registered = [n for n, v in config.items() if isinstance(v, list | tuple) and len(v) == 2]
        return Components.of_modules(
            f"{type(pipe).__name__} in memory",
            {name: getattr(pipe, name, None) for name in registered},
            type(pipe),
            {n: v for n, v in config.items() if n not in registered and n[0] != "_"},
        )

    @staticmethod
    def of_modules(
        where: str,
        modules: Mapping[str, Any],
        pipeline: type | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Components:
        """Components in memory, without those that are None.

        Args:
            where: name of the model, for messages.
            modules: the components by diffusers' names.
            pipeline: class of their pipeline, if there is one.
            options: the pipeline's own options.
        """
        there = {n: getattr(m, "_orig_mod", m) for n, m in modules.items() if m is not None}
        kinds = {name: type(module) for name, module in there.items()}
        classes = {name: _known_name(kind) for name, kind in kinds.items()}
        if pipeline is not None:
            kinds["pipeline"] = pipeline
        return Components(
            where=where,
            pipeline=None if pipeline is None else _known_name(pipeline),
            options=options or {},
            classes=classes,
            configs={name: _config_of(there[name]) for name in _CONFIGS if name in there},
            derived={n: _qualified(kind) for n, kind in kinds.items() if _is_derived(kind)},
            modules=there,
        )


def _index_of(directory: Path) -> dict[str, Any]:
    """The content of model_index.json, or {} without that file."""
    path = directory / "model_index.json"
    if not path.is_file():
        return {}
    index = open_json(directory, path.name)
    if not isinstance(index.get("_class_name"), str):
        raise UsageError(
            f"load: {path} names no pipeline of diffusers, but {index.get('_class_name')!r}; code"
            " that comes with a model is never run, so use a stock pipeline"
        )
    return index


def _listed_classes(index: Mapping[str, Any]) -> dict[str, str]:
    """The class of each component that model_index.json lists, which is the one diffusers opens."""
    classes = {}
    for name, value in index.items():
        if not isinstance(value, list) or len(value) != 2 or value[1] is None:
            continue
        library, kind = value
        classes[name] = kind if library in ("diffusers", "transformers") else f"{library}.{kind}"
    return classes


def _class_of(name: str, config: Mapping[str, Any], listed: str | None, directory: Path) -> str:
    """The class of a component: the listed one, or else the one that its configuration names."""
    if name not in _CONFIGS:
        return listed or "CLIPTokenizer"
    own = config.get("_class_name")
    if name.startswith("text_encoder"):
        own = (config.get("architectures") or [None])[0]
    if not isinstance(listed or own, str):
        raise UsageError(
            f"load: {directory / _CONFIGS[name]} names no class, so neither diffusers nor"
            " transformers wrote it; get the model again"
        )
    if name == "vae":
        # opened at the first image, as the class that its configuration names
        return str(own or listed)
    if name == "unet" and listed is not None and own != listed:
        raise UsageError(
            f"load: {directory}: model_index.json lists a {listed} as unet, but its configuration"
            f" is of {own!r}; get the model again"
        )
    return str(listed or own)


def _config_of(module: Any) -> Mapping[str, Any]:
    config = getattr(module, "config", None)
    if config is None:
        return {}
    return dict(config) if isinstance(config, Mapping) else dict(config.to_dict())


def _qualified(kind: type) -> str:
    if kind.__module__.startswith(_LIBRARIES):
        return kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"


def _known_name(kind: type) -> str:
    """The library class that a class is or is derived from; its own name if there is none."""
    known = (base for base in kind.__mro__ if base.__module__.startswith(_LIBRARIES))
    return _qualified(next(known, kind))


def _is_derived(kind: type) -> bool:
    return _known_name(kind) != _qualified(kind)


def _not_a_pipeline(source: Any) -> str:
    kind = type(source).__name__
    if kind == "Denoiser":
        return "this is a Denoiser already; use it as it is"
    if hasattr(source, "state_dict"):
        return (
            f"a {kind} is one module, but a score needs the text encoder, the tokenizer and the"
            " scheduler too; pass the whole pipeline, or its directory"
        )
    return (
        f"a {kind} is no model; use 'demo', a diffusers directory, a hub id, or a"
        " StableDiffusionPipeline or StableDiffusionXLPipeline in memory"
    )
