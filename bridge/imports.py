"""Classes of a user's own, found by their names."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import Any


def named(name: str) -> Any:
    """What `package.module:Name` names; modules in the working directory are found, too.

    Raises ImportError that says why it cannot be had, whatever the module raises when it is imported.
    """
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()  # noqa: PTH109 - an entry of sys.path is text
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ImportError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        near = difflib.get_close_matches(attribute, dir(module), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ImportError(f"{module.__file__} has no {attribute}{hint}") from None
