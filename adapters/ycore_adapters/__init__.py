"""Thin bindings from ycore to the world: stores, the driver, and the transports on it."""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec


def _origin(module: str) -> str:
    spec = find_spec(module)
    return "" if spec is None or spec.origin is None else spec.origin


def _is_compiled(module: str) -> bool:
    return _origin(module).endswith(tuple(EXTENSION_SUFFIXES))


# Compiled code reads the core's objects where those it was compiled with have their fields. Others
# would end the process, and say nothing.
if _is_compiled("ycore_adapters.driver") and not _is_compiled("ycore.room"):
    raise ImportError(
        "ycore_adapters is compiled, and does not work with the ycore that comes first on sys.path"
        f" ({_origin('ycore')}). Where its source is, run Python with -P, or elsewhere."
    )
