"""What a model directory says about itself: which parts it has and where they lie.

Four kinds are read: sentence-transformers (``modules.json``; ours are of this kind), Tevatron v1 with separate
encoders (``query_model/`` and ``passage_model/``), Tevatron v1 with a shared encoder and ``pooler.pt``, and a bare
Hugging Face model.
"""

from dataclasses import dataclass, replace
from typing import Any

from fastdense.errors import UserError
from fastdense.modeling.source import ModelSource

# Tevatron's PyTorch driver and its JAX driver name the folders differently.
TOWER_FOLDERS = (("query_model", "passage_model"), ("query_encoder", "passage_encoder"))

_POOLING_NAMES = {
    "cls_token": "cls",
    "mean_tokens": "mean",
    "lasttoken": "last",
    "cls": "cls",
    "mean": "mean",
}


@dataclass(frozen=True)
class Tower:
    """One encoder of a model directory; paths are relative to it, None means the directory does not say."""

    backbone: str
    pooling: str | None = None
    normalize: bool | None = None
    dense: str | None = None  # folder of a sentence-transformers Dense
    tevatron_linear: str | None = None  # linear_q or linear_p in pooler.pt


@dataclass(frozen=True)
class Layout:
    """The two encoders of a model directory; equal when they are one."""

    query: Tower
    passage: Tower
    kind: str  # sentence-transformers, tevatron or backbone

    @property
    def tied(self) -> bool:
        return self.query == self.passage


def read_layout(source: ModelSource) -> Layout:
    """Find out which kind of model directory this is and where its parts lie.

    Raises:
        UserError: it has none, or has parts that this package cannot express.
    """
    modules = source.json("modules.json")
    if modules is not None:
        return _sentence_transformers_layout(source, modules)
    for query, passage in TOWER_FOLDERS:
        if source.file(f"{query}/config.json") and source.file(f"{passage}/config.json"):
            return _with_tevatron_pooler(source, Tower(query), Tower(passage), "tevatron")
    return _with_tevatron_pooler(source, Tower(""), Tower(""), "backbone")


def _with_tevatron_pooler(source: ModelSource, query: Tower, passage: Tower, kind: str) -> Layout:
    if source.file("pooler.pt") is None:
        pooling = "cls" if kind == "tevatron" else None
        return Layout(replace(query, pooling=pooling), replace(passage, pooling=pooling), kind)
    config = source.object("pooler_config.json") or {}
    normalize = bool(config.get("normalize", False))
    query = replace(query, pooling="cls", normalize=normalize, tevatron_linear="linear_q")
    # One shared projection is stored under both names; telling the towers by name would untie them.
    name = "linear_q" if config.get("tied", True) else "linear_p"
    return Layout(query, replace(passage, pooling="cls", normalize=normalize, tevatron_linear=name), "tevatron")


def _sentence_transformers_layout(source: ModelSource, modules: Any) -> Layout:
    try:
        entries = [(str(module["type"]), str(module["path"])) for module in modules]
    except (TypeError, KeyError) as error:
        raise UserError(f"{source}/modules.json must be a list of modules with type and path") from error
    if entries and _kind_of(source, entries[0][0]) == "Router":
        routes = _read_routes(source, entries[0][1])
        query, passage = ([*routes[task], *entries[1:]] for task in ("query", "document"))
    else:
        query = passage = entries
    return Layout(_read_tower(source, query), _read_tower(source, passage), "sentence-transformers")


def _kind_of(source: ModelSource, type_name: str) -> str:
    """The class name of a module; package paths changed between sentence-transformers releases."""
    package, _, name = type_name.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise UserError(f"{source} has a module {type_name}, which is not one of sentence-transformers' own")
    return name


def _read_routes(source: ModelSource, folder: str) -> dict[str, list[tuple[str, str]]]:
    path = join(folder, "router_config.json")
    config = source.object(path)
    if config is None:
        raise UserError(f"{source} names a Router in modules.json but has no {path}")
    try:
        types, structure = config["types"], config["structure"]
        return {task: [(types[name], join(folder, name)) for name in structure[task]] for task in ("query", "document")}
    except (TypeError, KeyError) as error:
        raise UserError(f"{source}/{path} must have types and structure with routes query and document") from error


def _read_tower(source: ModelSource, modules: list[tuple[str, str]]) -> Tower:
    kinds = [_kind_of(source, type_name) for type_name, _ in modules]
    expected = ["Transformer", "Pooling"] + [kind for kind in ("Dense", "Normalize") if kind in kinds]
    if kinds != expected:
        raise UserError(
            f"{source} is made of {', '.join(kinds) or 'no modules'} (modules.json), but only Transformer, Pooling, "
            f"then one Dense or none, then Normalize or not, can be trained"
        )
    paths = dict(zip(kinds, (path for _, path in modules), strict=True))
    if "Dense" in paths:
        check_dense(source, paths["Dense"])
    return Tower(
        backbone=paths["Transformer"],
        pooling=_read_pooling(source, paths["Pooling"]),
        normalize="Normalize" in paths,
        dense=paths.get("Dense"),
    )


def _read_pooling(source: ModelSource, folder: str) -> str:
    path = join(folder, "config.json")
    config = source.object(path)
    if config is None:
        raise UserError(f"{source} names a Pooling module but has no {path}")
    modes = config.get("pooling_mode")  # 6.x; before that, one flag a mode
    if modes is None:
        modes = [
            key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on
        ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLING_NAMES:
        raise UserError(f"{source}/{path} pools by {' + '.join(modes) or 'nothing'}; cls, mean and lasttoken are known")
    if config.get("include_prompt", True) is False and any(read_prompts(source)):
        raise UserError(f"{source}/{path} leaves the prompt out of the pooling (include_prompt false): not supported")
    return _POOLING_NAMES[modes[0]]


def check_dense(source: ModelSource, folder: str) -> dict[str, Any]:
    """The configuration of a Dense module that is a plain linear projection; anything else is refused."""
    path = join(folder, "config.json")
    config = source.object(path)
    if config is None:
        raise UserError(f"{source} names a Dense module but has no {path}")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation is not None and not str(activation).endswith(".Identity"):
        raise UserError(f"{source}/{path} has the activation {activation}, but a projection here is linear (Identity)")
    ends = (config.get("module_input_name"), config.get("module_output_name"))
    if config.get("use_residual", False) or not {*ends} <= {None, "sentence_embedding"}:
        raise UserError(f"{source}/{path} is more than a linear projection of the pooled vector: not supported")
    return config


def read_prompts(source: ModelSource) -> tuple[str, str]:
    """The prompts for queries and for passages that a sentence-transformers directory names; "" for none."""
    config = source.object("config_sentence_transformers.json") or {}
    prompts = config.get("prompts") or {}
    fallback = prompts.get(config.get("default_prompt_name")) or ""
    # sentence-transformers adds an empty "document" to every model, so an empty one does not hide a "passage".
    passage = next((prompts[name] for name in ("document", "passage", "corpus") if prompts.get(name)), fallback)
    return prompts.get("query") or fallback, passage


def join(folder: str, name: str) -> str:
    """A path inside a model; "" and "." are its root, and an empty ``name`` is ``folder`` itself."""
    return "/".join(part for part in (folder, name) if part not in ("", "."))
