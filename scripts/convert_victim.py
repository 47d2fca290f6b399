"""Converts a classifier's PyTorch weights into a victim: checks them, writes safetensors.

usage: python scripts/convert_victim.py IN.pt OUT.safetensors

IN is a state dict or a checkpoint with one, saved by torch.save in any version, or
safetensors. The architecture is recognised; what does not fit it is named.
"""

import argparse
import math
import pathlib
import sys

import jax

from disguide_jax import convert, models
from disguide_jax.errors import UserError


def main() -> int:
    """Converts what the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(
        usage="python scripts/convert_victim.py IN.pt OUT.safetensors",
        description=__doc__.splitlines()[0],
    )
    parser.add_argument("source", metavar="IN", type=pathlib.Path)
    parser.add_argument("target", metavar="OUT", type=pathlib.Path)
    args = parser.parse_args()
    try:
        convert_victim(args.source, args.target)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def convert_victim(source: pathlib.Path, target: pathlib.Path) -> None:
    """Checks the weights in `source`, writes them to `target` and prints what they are.

    Raises:
      UserError: `target` exists, or `source` is no classifier's weights.
    """
    if target.exists():
        raise UserError(f"{target} exists; remove it, or name another file")
    state_dict = convert.load_state_dict(source)
    found = convert.recognise(state_dict, str(source))
    net = models.make_classifier(**found._asdict())
    template = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    convert.fit(state_dict, template, str(source))
    # The file keeps the dtypes of its source; they are cast when a victim is loaded.
    state_dict = convert.to_state_dict(convert.to_variables(state_dict))
    metadata = {"model": found.model, "width": str(found.width), "converted_from": source.name}
    convert.save_state_dict(target, state_dict, metadata)

    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(template.params))
    print(
        f"{source}: {found.model}, width {found.width}, {found.channels} channels, "
        f"{found.num_classes} classes, {num_params:,} parameters"
        f"\n{target}: {len(state_dict)} tensors, {target.stat().st_size:,} bytes"
        f"\nUse it with --config.victim.weights={target}"
    )


if __name__ == "__main__":
    sys.exit(main())
