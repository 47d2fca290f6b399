"""Unpickling that builds plain containers and can call nothing but what a reader gives it."""

import pickle
import pickletools
from typing import BinaryIO

MOST_TUPLES = 100_000  # a million, one in the other, overflow Python's stack where it hashes them


class InertUnpickler(pickle.Unpickler):
    """Refuses every name that a pickle asks for, unless a subclass has something inert for it.

    A pickle can set attributes of whatever it gets hold of. So what a subclass gives must be
    either immutable or made for it alone.
    """

    def __init__(self, file: BinaryIO, *, encoding: str = "ASCII"):
        super().__init__(file, encoding=encoding)
        self.file = file

    def load_checked(self) -> object:
        """What the next pickle in the file holds.

        Raises:
          Exception: it is damaged or malicious; damage can raise nearly any kind.
        """
        start, tuples = self.file.tell(), 0
        for count, (opcode, arg, _) in enumerate(pickletools.genops(self.file)):
            # For a damaged index of 2^32 Python would write 64 GB of pointers.
            if opcode.name.endswith("PUT") and isinstance(arg, int) and arg > count:
                raise ValueError(f"its pickle numbers an object {arg}")
            tuples += opcode.name.startswith("TUPLE")
        if tuples > MOST_TUPLES:
            raise ValueError(f"its pickle has {tuples:,} tuples")
        self.file.seek(start)
        return self.load()

    def find_class(self, module: str, name: str) -> object:
        """Stands in for a name.

        Raises:
          ValueError: always, here.
        """
        raise ValueError(f"it asks for {module}.{name}, which is refused; nothing was executed")
