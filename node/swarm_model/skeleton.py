"""Which modules of a model's class a span needs, found by watching the class work rather than by knowing families.

A model is built on the meta device (shapes, no memory), its blocks are replaced by holes that pass their input on, and
one token is sent through: modules with weights that run before the holes belong to the first span, those behind them to
the last. From that follow the tensors and files of every span, and a subclass of the model that builds only one span.
Owns no weights. Called by loading.py.
"""

import copy
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import swarm_model.transformers_version  # noqa: F401  checks the release before the imports below rely on it
from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import CheckpointBroken, ModelError, SpanOutsideModel, UnsupportedModel
from swarm_model.prequantized import Plan, plan_of, quantizer_of
from swarm_model.sizing import FLOATS
from swarm_model.tensor_files import TensorInfo

logger = logging.getLogger(__name__)

NAMED: Final = 5  # tensors that a note names
CPU: Final = torch.device("cpu")
NO_MASKS: Final = "swarm_no_masks"  # transformers makes no attention masks for an implementation that it does not know
META_MASKS: Final = "swarm_meta_masks"  # for code that cannot do without
PLAIN: Final = (str, int, float, bool, type(None))  # attributes of a block that the model's own forward may ask for


class Edges(NamedTuple):
    """At which ends of the model a module outside the blocks is used."""

    first: bool
    last: bool


@dataclass(frozen=True)
class Anatomy:
    """What a model's class consists of, from the point of view of somebody who cuts it into spans."""

    model_class: type[Any]
    blocks: str  # module name of the list of blocks, such as "model.layers"
    num_blocks: int
    edges: dict[str, Edges]  # module name -> where it is used, for all modules with weights outside the blocks
    block_tensors: tuple[tuple[str, ...], ...]  # checkpoint tensors of each block
    edge_tensors: dict[str, Edges]  # checkpoint tensors outside the blocks
    plan: Plan | None  # of a quantized checkpoint
    tuples: bool  # whether blocks return their hidden states in a tuple
    attention: str  # the attention implementation that transformers takes by default

    def needs_module(self, name: str, start: int, end: int) -> bool:
        edges = self.edges[name]
        return (edges.first and start == 0) or (edges.last and end == self.num_blocks)

    def tensors(self, start: int, end: int) -> list[str]:
        """Name the checkpoint tensors that blocks `start` to `end` need, edges included."""
        first, last = start == 0, end == self.num_blocks
        names = [name for block in self.block_tensors[start:end] for name in block]
        return names + [name for name, edges in self.edge_tensors.items() if edges.first & first or edges.last & last]

    def digest_tensors(self, block: int) -> list[str]:
        """Name the tensors that a block's digest covers: its own, and at the ends of the model the edge's."""
        return sorted(self.tensors(block, block + 1))


class Hole(nn.Module):
    """Stands where a block of another span would stand, and hands its input on."""

    def __init__(self, like: nn.Module, *, as_tuple: bool = False) -> None:
        super().__init__()
        self._as_tuple = as_tuple
        for name, value in vars(like).items():
            if isinstance(value, PLAIN) and not name.startswith("_"):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, None) if self._as_tuple else hidden


class NoEmbedding(nn.Module):
    """Stands where an embedding of another span would stand: its output is replaced by the previous span's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(1, 1, self.width, device=ids.device)


def check_span(start: int, end: int, num_blocks: int) -> None:
    """Raise SpanOutsideModel unless 0 <= start < end <= num_blocks."""
    if not 0 <= start < end <= num_blocks:
        raise SpanOutsideModel((start, end), num_blocks)


def study(checkpoint: Checkpoint, device: torch.device = CPU) -> Anatomy:
    """Find out how a checkpoint's model is put together; quantized ones, for a device. Reads no weights.

    Raises UnsupportedModel, QuantizationUnavailable, CheckpointBroken.
    """
    plan = plan_of(checkpoint, device)
    config, family = checkpoint.config, checkpoint.family
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UnsupportedModel(family, "transformers has no causal language model for it")
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    with torch.device("meta"):
        model = model_class(copy.deepcopy(config))
    parameters, attention = model.state_dict(), str(model.config._attn_implementation)
    blocks = _find_blocks(model, checkpoint.num_blocks, family)
    edges, tuples = _watch_edges(model, blocks, family)
    quantizer = None
    if plan is not None:
        model, quantizer, plan = _quantized(model_class, config, plan, device)
        parameters = model.state_dict()
    rename = _renamer(model, parameters, quantizer)
    block_tensors: list[list[str]] = [[] for _ in range(checkpoint.num_blocks)]
    edge_tensors: dict[str, Edges] = {}
    modules = {name for name, _ in model.named_modules()}
    strays = []
    for tensor in checkpoint.weight_map:
        target = rename(tensor)
        module = target.rpartition(".")[0]
        if target in parameters:
            _check_type(checkpoint.tensors[tensor], parameters[target], plan)
        elif plan is None or module not in modules:
            strays.append(tensor)  # buffers that old releases saved, heads of other tasks
            continue
        if target.startswith(blocks + "."):
            block_tensors[int(target[len(blocks) + 1 :].split(".")[0])].append(tensor)
        elif module in edges:
            edge_tensors[tensor] = edges[module]
    _tell_strays(strays, model)
    for number, names in enumerate(block_tensors):
        if not names:
            raise CheckpointBroken(str(checkpoint.directory), f"it holds no tensor of block {number}")
    return Anatomy(
        model_class,
        blocks,
        checkpoint.num_blocks,
        edges,
        tuple(tuple(names) for names in block_tensors),
        edge_tensors,
        plan,
        tuples,
        attention,
    )


def span_class(anatomy: Anatomy, start: int, end: int) -> type[Any]:
    """Make a subclass of the model that builds blocks `start` to `end` and the edges that they need."""

    model_class: Any = anatomy.model_class

    class SpanModel(model_class):  # type: ignore[misc]
        _keys_to_ignore_on_load_unexpected: Final = [".*"]

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            _prune(self, anatomy, start, end)

    # transformers looks renamings up by class name, and skips classes from outside its own package
    SpanModel.__name__ = model_class.__name__
    SpanModel.__module__ = model_class.__module__
    SpanModel.config_class = model_class.config_class
    return SpanModel


def _initialize_real_blocks(owner: Any, name: str) -> None:
    """Have the code that fills in what no checkpoint holds see real blocks alone in the owner's list `name`."""
    initialize = owner._init_weights

    def wrapped(module: nn.Module) -> None:
        if module is not owner:
            initialize(module)
            return
        blocks = getattr(owner, name)
        setattr(owner, name, nn.ModuleList(block for block in blocks if not isinstance(block, Hole)))
        try:
            initialize(module)
        finally:
            setattr(owner, name, blocks)

    owner._init_weights = wrapped


def _prune(model: Any, anatomy: Anatomy, start: int, end: int) -> None:
    layers = model.get_submodule(anatomy.blocks)
    for number in range(anatomy.num_blocks):
        if not start <= number < end:
            layers[number] = Hole(layers[number], as_tuple=anatomy.tuples)
    owner, _, name = anatomy.blocks.rpartition(".")
    if hasattr(model.get_submodule(owner), "_init_weights"):
        _initialize_real_blocks(model.get_submodule(owner), name)
    unused = _unused_parts(model, anatomy)
    for name in unused:
        model.set_submodule(name, Hole(model.get_submodule(name)))
    for name in anatomy.edges:
        if not anatomy.needs_module(name, start, end) and not name.startswith(tuple(f"{part}." for part in unused)):
            module = model.get_submodule(name)
            substitute = NoEmbedding(module.embedding_dim) if isinstance(module, nn.Embedding) else Hole(module)
            model.set_submodule(name, substitute)
    if end != anatomy.num_blocks and hasattr(model, "all_tied_weights_keys"):
        model.all_tied_weights_keys = {}  # the head that would be tied is not here


def _unused_parts(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """Name the largest parts that take no part in computing text, such as a vision tower."""
    used = [anatomy.blocks, *(name for name, edges in anatomy.edges.items() if edges.first or edges.last)]
    parts: list[str] = []
    for name, module in model.named_modules():
        inside = f"{name}.".startswith(tuple(f"{part}." for part in (*parts, anatomy.blocks)))
        holds_used = any(f"{other}.".startswith(f"{name}.") for other in used)
        is_large = any(True for _ in module.children()) and any(True for _ in module.parameters())
        if name and is_large and not inside and not holds_used:
            parts.append(name)
    return parts


def _find_blocks(model: nn.Module, num_blocks: int, family: str) -> str:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks:
            return str(name)
    raise UnsupportedModel(family, f"its class has no list of {num_blocks} blocks")


def _watch_edges(model: Any, blocks: str, family: str) -> tuple[dict[str, Edges], bool]:
    """Send one token through the model with holes for blocks, and note who runs before and who behind them.

    Says too whether blocks return their hidden states in a tuple: where they do, a model takes item 0 of what a hole
    returns, and a bare tensor loses a dimension.
    """
    weighted = [
        name
        for name, module in model.named_modules()
        if name and not name.startswith(blocks + ".") and any(True for _ in module.parameters(recurse=False))
    ]
    layers = model.get_submodule(blocks)
    originals = list(layers)
    refusals = []
    for tuples, masks in product((False, True), (NO_MASKS, META_MASKS)):
        for number, block in enumerate(originals):
            layers[number] = Hole(block, as_tuple=tuples)
        try:
            with foreign_code(family), torch.no_grad(), attention_implementation(model, masks):
                ran = _who_runs(model, layers[0], weighted)
            break
        except UnsupportedModel as refusal:
            refusals.append(refusal)
    else:
        raise refusals[0]
    edges = {name: Edges(first=False in ran.get(name, ()), last=True in ran.get(name, ())) for name in weighted}
    for head, embedding in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        tied = head.rpartition(".")[0], embedding.rpartition(".")[0]
        if all(name in edges for name in tied):
            edges[tied[1]] = Edges(edges[tied[1]].first, edges[tied[1]].last or edges[tied[0]].last)
    return edges, tuples


def _meta_mask(*_: Any, q_length: int, kv_length: int, **__: Any) -> torch.Tensor:
    """Make an attention mask of the right shape, for code that only passes it on."""
    return torch.zeros(1, 1, q_length, kv_length, dtype=torch.bool, device="meta")


ALL_MASK_ATTENTION_FUNCTIONS.register(META_MASKS, _meta_mask)


def _who_runs(model: Any, first_block: nn.Module, weighted: list[str]) -> dict[str, set[bool]]:
    """Run one token, and give for each module that ran whether that was before (False) or behind (True) the blocks."""
    passed_blocks = False
    ran: dict[str, set[bool]] = {}
    dimensions = 0

    def note_block(_: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal passed_blocks, dimensions
        passed_blocks = True
        dimensions = (args[0] if args else kwargs["hidden_states"]).dim()

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any) -> None:
            ran.setdefault(name, set()).add(passed_blocks)
            if passed_blocks and args and isinstance(args[0], torch.Tensor) and args[0].dim() < dimensions:
                raise ValueError("its blocks return no plain tensors")

        return hook

    with ExitStack() as hooks:
        hooks.callback(first_block.register_forward_pre_hook(note_block, with_kwargs=True).remove)
        for name in weighted:
            hooks.callback(model.get_submodule(name).register_forward_pre_hook(note(name)).remove)
        vars(model.config)["pad_token_id"] = (
            None  # modelling code would look for padding among the ids, which have no values
        )
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device="meta"), use_cache=False)
    return ran


@contextmanager
def foreign_code(family: str) -> Iterator[None]:
    """Turn whatever a family's modelling code trips over, when we drive it in our way, into UnsupportedModel."""
    try:
        yield
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnsupportedModel(family, f"its code fails on a span ({type(error).__name__}: {error})") from error


@contextmanager
def attention_implementation(model: Any, name: str) -> Iterator[None]:
    """Let a model's modules use another attention function for a while."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _check_type(tensor: TensorInfo, parameter: torch.Tensor, plan: Plan | None) -> None:
    if plan is None and parameter.is_floating_point() and tensor.dtype not in FLOATS:
        reason = f"{tensor.name} holds {tensor.dtype} where floats are expected; is quantization_config missing?"
        raise CheckpointBroken(tensor.file, reason)


def _tell_strays(strays: list[str], model: Any) -> None:
    """Note the tensors that no module takes: transformers leaves them too, and warns unless the family expects them."""
    expected = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    unknown = sorted(name for name in strays if not any(pattern.search(name) for pattern in expected))
    if unknown:
        logger.warning("%d tensors of the checkpoint fit no module and are left out: %s", len(unknown), unknown[:NAMED])


def _quantized(model_class: Any, config: Any, plan: Plan, device: torch.device) -> tuple[Any, Any, Plan]:
    """Build a model without weights as its quantizer changes it; give both, and the plan with what is left alone."""
    quantizer = quantizer_of(plan, device)
    with torch.device("meta"):
        model = model_class(copy.deepcopy(config))
        quantizer.preprocess_model(
            model=model, dtype=torch.bfloat16, device_map={"": device}, checkpoint_files=None, use_kernels=False
        )
    skipped = getattr(quantizer, "modules_to_not_convert", None)
    return model, quantizer, plan if skipped is None else plan.without(skipped)


def _renamer(model: Any, parameters: dict[str, torch.Tensor], quantizer: Any) -> Callable[[str], str]:
    """Give the library's own renaming from checkpoint tensors to parameters, fused and quantized ones included."""
    conversions = get_model_conversion_mapping(model, None, quantizer)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    prefix = model.base_model_prefix

    def rename(tensor: str) -> str:
        name, _ = rename_source_key(tensor, renamings, converters, prefix, parameters)
        if name not in parameters and tensor in parameters:
            name, _ = rename_source_key(tensor, [], [], prefix, parameters)
        return str(name)

    return rename
