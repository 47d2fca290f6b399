"""Classifiers that a user brings: any Flax module, as package.module:Name.

The module is a class. It is made as Name(num_classes=K), with width=W and dtype=D if it has fields
of these names, and called as module(x, train=...), x [N, H, W, channels] being images as clones
and victims see them; it returns logits [N, K]. What it keeps besides parameters must be in
"batch_stats", and it gets no random numbers after its initialisation: dropout must be off.
"""

from typing import Any

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.core import named
from disguide_jax.core.types import Net
from disguide_jax.errors import UserError


def is_brought(model: str) -> bool:
    """Whether a model is a user's module rather than a name of this project's."""
    return ":" in model


def usual_width(model: str) -> int:
    """The default of the module's width; 0 where it has none.

    Raises:
      UserError: there is no such module.
    """
    default = getattr(_fields(_find(model)).get("width"), "default", None)
    return default if isinstance(default, int) else 0


def make(model: str, *, width: int, num_classes: int, dtype: DTypeLike | None) -> nn.Module:
    """The module of so many classes; a width of 0 leaves it its own.

    Raises:
      UserError: there is no such module, or it cannot be made like this.
    """
    kind = _find(model)
    fields = _fields(kind)
    if width and "width" not in fields:
        raise UserError(f"model {model!r} has no field width, and width is {width}; it must be 0")
    options = {"width": width or None, "dtype": dtype}
    known = {name: value for name, value in options.items() if name in fields and value}
    try:
        return kind(num_classes=num_classes, **known)
    except Exception as error:
        raise UserError(f"model {model!r} cannot be made: {named.in_a_line(error)}") from error


def check(model: str, net: Net, image: jax.ShapeDtypeStruct, num_classes: int) -> None:
    """Refuses a module that does not return logits.

    Args:
      model: its name.
      net: what it has become.
      image: [1, H, W, channels].
      num_classes: K.

    Raises:
      UserError: it raises something, or returns something else.
    """
    images = jax.ShapeDtypeStruct((2, *image.shape[1:]), image.dtype)

    def applied(images: jax.Array, *, train: bool) -> Any:
        return net.apply(net.init(jax.random.key(0)), images, train=train)[0]

    for train in (False, True):
        try:
            logits = jax.eval_shape(lambda x, train=train: applied(x, train=train), images)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"model {model!r} fails on images {list(images.shape)} with train={train}: "
                f"{named.in_a_line(error)}"
            ) from error
        shape = getattr(logits, "shape", None)
        if shape != (2, num_classes):
            returned = f"{list(shape)}" if shape is not None else f"a {type(logits).__name__}"
            raise UserError(
                f"model {model!r} returns {returned} for images {list(images.shape)}; it must be "
                f"logits [2, {num_classes}]"
            )


def _find(model: str) -> type[nn.Module]:
    module, _, name = model.partition(":")
    if not module or not name:
        raise UserError(f"model is {model!r}; it must be package.module:Name")
    found = named.find(model, said=f"model {model!r}")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"model {model!r} is not a Flax module, a class below flax.linen.Module")
    return found


def _fields(kind: type[nn.Module]) -> dict[str, Any]:
    return getattr(kind, "__dataclass_fields__", {})
