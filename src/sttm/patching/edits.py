"""Edits of a model that can be undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Edits:
    """A list of edits with their inverses; `undo` leaves the model exactly as it was.

    Edits go to modules, never to a config, which several models may share. The objects that are kept are the model's
    own, so that a deep copy of a model carries edits that fit the copy.
    """

    def __init__(self) -> None:
        self._attributes: list[tuple[nn.Module, str, bool, Any]] = []
        self._modules: list[tuple[nn.Module, str]] = []
        self._handles: list[Any] = []

    def set_attribute(self, owner: nn.Module, name: str, value: Any) -> None:
        """Set a plain attribute (not a parameter or a module) on one module, its class left as it is."""
        had = name in vars(owner)
        self._attributes.append((owner, name, had, vars(owner).get(name)))
        setattr(owner, name, value)

    def add_module(self, owner: nn.Module, name: str, module: nn.Module) -> None:
        """Add a submodule under a name that was free."""
        assert name not in owner._modules, name
        owner.add_module(name, module)
        self._modules.append((owner, name))

    def before(self, module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> None:
        """Call `hook(module, args)`, or `hook(module, args, kwargs)`, before the module's forward."""
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=with_kwargs))

    def after(
        self, module: nn.Module, hook: Callable[..., Any], *, always: bool = False, with_kwargs: bool = False
    ) -> None:
        """Call `hook(module, args, output)`, or `hook(module, args, kwargs, output)`, after the module's forward.

        `always`: also where that raised.
        """
        self._handles.append(module.register_forward_hook(hook, always_call=always, with_kwargs=with_kwargs))

    def undo(self) -> None:
        """Take all edits back, the last one first."""
        for handle in reversed(self._handles):
            handle.remove()
        for owner, name in reversed(self._modules):
            del owner._modules[name]
        for owner, name, had, value in reversed(self._attributes):
            if had:
                setattr(owner, name, value)
            else:
                delattr(owner, name)
        self.__init__()  # type: ignore[misc]
