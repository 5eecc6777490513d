"""Arguments that several commands share: which checkpoints, modules and layers."""

import click


def _kinds(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [kind.strip() for kind in value.split(",") if kind.strip()]


def _layers(_: click.Context, __: click.Parameter, value: str | None) -> frozenset[int] | None:
    from wdecomp.inputs import parse_layers

    if value is None:
        return None
    try:
        return parse_layers(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not written like 0-3,8.") from None


modules_option = click.option(
    "--modules", callback=_kinds, metavar="KINDS", help="Only these module kinds: q,v,down."
)
layers_option = click.option(
    "--layers", callback=_layers, metavar="LAYERS", help="Only these layers: 0-3,8."
)

pickle_option = click.option(
    "--allow-pickle",
    is_flag=True,
    help="Open pickled files (.bin, .pt, .pth, .ckpt) too, as tensors alone. Needs torch.",
)


base_dequantized_option = click.option(
    "--base-dequantized",
    metavar="PATH",
    help="The quantised base that the adapters were trained on (QLoRA, QDoRA): they are compared "
    "with it, and what quantisation did to BASE is shown as a run of its own.",
)


def split_base(paths: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """The base and the tuned ones; no base if the first path is an adapter or has a label."""
    from wdecomp.checkpoint import is_adapter, is_there
    from wdecomp.inputs import named_path, new_path
    from wdecomp.remote import is_url

    if "=" in paths[0] and not is_url(paths[0]) and not is_there(new_path(paths[0])):
        return None, paths
    return (None, paths) if is_adapter(named_path(paths[0])) else (paths[0], paths[1:])
