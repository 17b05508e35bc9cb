"""Sites: named places in a model where activations are read and written, found in Hugging Face modules.

Names are TransformerLens' hook names (`blocks.3.hook_resid_post`), and hold the same values as there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from analysis.errors import InputError

SITES: dict[str, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
}
"""Residual stream before and after a block; what attention and MLP add to it; the heads' outputs `[head, d_head]`."""

_HOOK_NAME = re.compile(r"blocks\.(\d+)\.(.+)")
_ATTENTION = ("self_attn", "attn", "attention")
_MLP = ("mlp",)
_PROJECTION = ("o_proj", "c_proj", "dense", "out_proj")

Edit = Callable[[Tensor], Tensor]
"""Takes an activation `[row, token, …]` and returns what stands there instead, of the same shape; never in place."""


def hook_name(site: str, layer: int) -> str:
    """The hook name of a site of `SITES` in a layer, counted from 0."""
    return f"blocks.{layer}.{SITES[site]}"


def check_site_names(sites: Sequence[str]) -> None:
    """Raises InputError for a site that is not one of `SITES`, or for none at all."""
    for site in sites:
        if site not in SITES:
            raise InputError(f"site {site!r}: unknown; known are {', '.join(SITES)}")
    if not sites:
        raise InputError(f"no site given; known are {', '.join(SITES)}")


def parse_hook_name(name: str) -> tuple[str, int]:
    """The site and layer that a hook name stands for.

    Raises:
        InputError: for a name that is not one of the suite's.
    """
    match = _HOOK_NAME.fullmatch(name)
    for site, suffix in SITES.items():
        if match and match[2] == suffix:
            return site, int(match[1])
    raise InputError(
        f"hook {name!r}: unknown; known are {', '.join(f'blocks.LAYER.{suffix}' for suffix in SITES.values())}"
    )


def hook_names(model: Any, sites: Sequence[str], layers: Sequence[int] | None = None) -> list[str]:
    """The hook names of these sites, layer by layer; all layers if none are given.

    Raises:
        InputError: for an unknown site, a layer that the model does not have, or a site that it does not have.
    """
    n_layers = len(blocks(model))
    check_site_names(sites)
    for layer in layers or ():
        if not 0 <= layer < n_layers:
            raise InputError(f"layer {layer}: the model has layers 0 to {n_layers - 1}")
    if layers is not None and not layers:
        raise InputError(f"no layer given; the model has layers 0 to {n_layers - 1}")
    chosen = range(n_layers) if layers is None else layers
    names = [hook_name(site, layer) for layer in dict.fromkeys(chosen) for site in dict.fromkeys(sites)]
    for name in names:
        _place(model, name)
    return names


def blocks(model: Any) -> Any:
    """The model's transformer blocks, in order.

    Raises:
        InputError: if it has no list of as many modules as its configuration has layers.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers:
            return module
    raise InputError(f"architecture {model.config.model_type}: no list of {n_layers} blocks was found in it")


@contextmanager
def recorded(model: Any, names: Sequence[str], pick: Edit | None = None) -> Iterator[dict[str, Tensor]]:
    """Within, each forward pass puts the activations of these hooks into the dictionary that this gives.

    Args:
        model: Hugging Face causal language model.
        names: hook names.
        pick: what to keep of an activation `[row, token, …]`; by default a copy of all of it.
    """
    keep = pick or torch.clone
    found: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[Tensor], None]:
        return lambda value: found.__setitem__(name, keep(value))

    with ExitStack() as stack:
        for name in names:
            stack.callback(_attach(model, name, record(name)).remove)
        yield found


@contextmanager
def written(model: Any, edits: Mapping[str, Edit]) -> Iterator[dict[str, int]]:
    """Within, each hook's activation is replaced by what its edit makes of it.

    Gives, for each hook name, how often it has fired: a hook that did not fire has changed nothing.
    """
    fired = dict.fromkeys(edits, 0)

    def replace(name: str) -> Edit:
        def replaced(value: Tensor) -> Tensor:
            fired[name] += 1
            return edits[name](value)

        return replaced

    with ExitStack() as stack:
        for name in edits:
            stack.callback(_attach(model, name, replace(name)).remove)
        yield fired


@contextmanager
def skipped(model: Any, layers: Sequence[int], tupled: bool) -> Iterator[None]:
    """Within, these blocks are not run: what they are given is what they give. Their hooks fire as ever.

    Args:
        model: Hugging Face causal language model.
        layers: counted from 0.
        tupled: whether this model's blocks give their stream in a tuple (`gives_tuples`).
    """

    def passed_on(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if tupled else hidden_states

    with ExitStack() as stack:
        for layer in layers:
            block = blocks(model)[layer]
            before = vars(block).get("forward")
            block.forward = passed_on
            stack.callback(vars(block).pop, "forward")
            if before is not None:
                stack.callback(setattr, block, "forward", before)
        yield


@contextmanager
def gives_tuples(model: Any) -> Iterator[list[bool]]:
    """Within, each forward pass notes whether the model's blocks give their stream in a tuple."""
    noted: list[bool] = []
    hook = blocks(model)[0].register_forward_hook(lambda _, __, output: noted.append(isinstance(output, tuple)))
    try:
        yield noted
    finally:
        hook.remove()


def after_attention(model: Any, layer: int) -> list[Any]:
    """The modules of a block behind attention that each token goes through by itself: output projection and MLP, as
    far as the architecture has them under a name that is known here."""
    block = blocks(model)[layer]
    attention = _child(block, _ATTENTION)
    found = (None if attention is None else _child(attention, _PROJECTION), _child(block, _MLP))
    return [module for module in found if module is not None]


def _attach(model: Any, name: str, see: Callable[[Tensor], Tensor | None]) -> Any:
    """Shows the activation to `see`, and puts what it returns, unless None, in the activation's place."""
    module, before, heads = _place(model, name)

    def shown(value: Tensor) -> Tensor | None:
        new = see(value.reshape(*value.shape[:-1], heads, -1) if heads else value)
        return new.flatten(-2) if heads and new is not None else new

    def pre_hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        new = shown(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def post_hook(_: Any, __: Any, output: Any) -> Any:
        new = shown(output[0] if isinstance(output, tuple) else output)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    if before:
        return module.register_forward_pre_hook(pre_hook, with_kwargs=True)
    return module.register_forward_hook(post_hook)


def _place(model: Any, name: str) -> tuple[Any, bool, int]:
    """The module, whether its input (and not its output) is meant, and the number of heads it is split into, or 0.

    Raises:
        InputError: if the architecture has no such place.
    """
    site, layer = parse_hook_name(name)
    block = blocks(model)[layer]
    if site in ("resid_pre", "resid_post"):
        return block, site == "resid_pre", 0
    # Where the branch is normalised before it is added (Gemma 2 and 3, OLMo 2), the norm's output is what is added.
    normalised = hasattr(block, "post_feedforward_layernorm")
    attention = _child(block, _ATTENTION)
    place = {
        "attn_out": block.post_attention_layernorm if normalised else attention,
        "mlp_out": block.post_feedforward_layernorm if normalised else _child(block, _MLP),
        "z": _child(attention, _PROJECTION),
    }[site]
    if place is None:
        raise InputError(
            f"hook {name!r}: the architecture {model.config.model_type} has no such place that is known here; "
            "use resid_pre or resid_post"
        )
    heads = model.config.get_text_config().num_attention_heads if site == "z" else 0
    return place, site == "z", heads


def _child(module: Any, names: Sequence[str]) -> Any:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


@torch.inference_mode()
def check_streams(model: Any, ids: Int[Tensor, "row token"]) -> None:
    """Finds, on one batch, that hooks fire, that each block reads what the last one wrote, and that writing acts.

    Raises:
        InputError: if a hook does not fire, if writing a residual stream back changes the logits, or if writing
            another leaves them as they were.
    """
    kind = model.config.model_type
    names = hook_names(model, ("resid_pre", "resid_post"))
    with recorded(model, names) as found:
        logits = model(input_ids=ids, use_cache=False).logits
    if missing := [name for name in names if name not in found]:
        raise InputError(f"architecture {kind}: hook {missing[0]!r} did not fire in a forward pass")
    for layer in range(1, len(blocks(model))):
        if not torch.equal(found[hook_name("resid_pre", layer)], found[hook_name("resid_post", layer - 1)]):
            raise InputError(f"architecture {kind}: block {layer} does not read what block {layer - 1} wrote")
    middle = hook_name("resid_post", len(blocks(model)) // 2)
    with written(model, {middle: lambda _: found[middle].clone()}):
        same = model(input_ids=ids, use_cache=False).logits
    with written(model, {middle: lambda _: found[middle].flip(1)}):
        other = model(input_ids=ids, use_cache=False).logits
    if not torch.equal(same, logits) or torch.equal(other, logits):
        raise InputError(f"architecture {kind}: writing to hook {middle!r} does not act on the logits as it should")


@torch.inference_mode()
def check_branches(model: Any, ids: Int[Tensor, "row token"]) -> None:
    """Finds, on one batch, that in every block input, attention output and MLP output sum to the block's output.

    Raises:
        InputError: if they do not: then what was taken for them is something else.
    """
    names = hook_names(model, ("resid_pre", "attn_out", "mlp_out", "resid_post"))
    with recorded(model, names) as found:
        model(input_ids=ids, use_cache=False)
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.05
    for layer in range(len(blocks(model))):
        before, attention, mlp, after = (
            found[hook_name(site, layer)].float() for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        error = float((before + attention + mlp - after).abs().max() / after.abs().max())
        if not error <= tolerance:
            raise InputError(
                f"architecture {model.config.model_type}: in block {layer} input, attention and MLP do not sum to the "
                f"output (off by {error:.2g} of its largest value), so the sites attn_out and mlp_out cannot be "
                "named; use resid_pre, resid_post or z"
            )
