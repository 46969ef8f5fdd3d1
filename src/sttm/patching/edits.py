"""Touching a model so that every touch can be undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Patch:
    """A list of touches with their inverses; `undo` leaves the model exactly as it was.

    The objects it keeps are the model's own, so that a deep copy of a model carries a patch that fits the copy.
    """

    def __init__(self) -> None:
        self._attributes: list[tuple[Any, str, bool, Any]] = []
        self._modules: list[tuple[nn.Module, str]] = []
        self._handles: list[Any] = []

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Sets a plain attribute (not a parameter or a module) on one object, its class untouched."""
        had = name in vars(owner) or isinstance(getattr(type(owner), name, None), property)
        self._attributes.append((owner, name, had, getattr(owner, name) if had else None))
        setattr(owner, name, value)

    def add_module(self, owner: nn.Module, name: str, module: nn.Module) -> None:
        """Adds a submodule under a name that was free."""
        assert name not in owner._modules, name
        owner.add_module(name, module)
        self._modules.append((owner, name))

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Calls `hook(module, args)` before the module's forward."""
        self._handles.append(module.register_forward_pre_hook(hook))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Calls `hook(module, args, output)` after the module's forward."""
        self._handles.append(module.register_forward_hook(hook))

    def undo(self) -> None:
        """Takes everything back, last touch first."""
        for handle in reversed(self._handles):
            handle.remove()
        for owner, name in reversed(self._modules):
            del owner._modules[name]
        for holder, name, had, value in reversed(self._attributes):
            if had:
                setattr(holder, name, value)
            else:
                delattr(holder, name)
        self.__init__()  # type: ignore[misc]
