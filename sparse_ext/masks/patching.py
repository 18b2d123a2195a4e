# SPDX-License-Identifier: MIT
"""Rules that change modules of an encoder: collect every claim first, then apply.

A rule that matches nothing, and two rules that claim the same module, are mistakes in a
configuration; both are reported by name before anything has been changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from solo.errors import ConfigError, did_you_mean
from sparse_ext.masks.masked_layers import MASKED_TYPES, mask_module


@dataclass(frozen=True)
class PatchRule:
    """Replace modules of one type by others.

    Attributes:
        name: what error messages call the rule.
        target: exact type or types that it replaces.
        convert: gets the module, returns the one to put in its place (maybe the same object).
        names: globs on the fully qualified module name, e.g. `layer*.conv1`.
    """

    name: str
    target: type[nn.Module] | tuple[type[nn.Module], ...]
    convert: Callable[[nn.Module], nn.Module]
    names: tuple[str, ...] = ("*",)

    def claims(self, name: str, module: nn.Module) -> bool:
        """Whether this rule wants the module called `name`."""
        types = self.target if isinstance(self.target, tuple) else (self.target,)
        return type(module) in types and any(fnmatchcase(name, glob) for glob in self.names)


def masking(names: Iterable[str]) -> PatchRule:
    """The rule that gives a mask to the layers called `names` (see `sparse_ext.masks.prunable`)."""
    return PatchRule("masks", tuple(MASKED_TYPES), mask_module, tuple(names))


def apply(rules: Iterable[PatchRule], module: nn.Module) -> dict[str, nn.Module]:
    """Apply the rules to the modules of `module`, in place.

    Returns:
        the new modules by fully qualified name, in the order of `module.named_modules()`.

    Raises:
        ConfigError: if a glob matches nothing, or two rules claim one module; nothing is changed.
    """
    rules = list(rules)
    modules = {name: child for name, child in module.named_modules() if name}
    for rule in rules:
        _check_matches(rule, modules)
    claims = {name: [r for r in rules if r.claims(name, child)] for name, child in modules.items()}
    for name, claimants in claims.items():
        if len(claimants) > 1:
            names = " and ".join(f"'{rule.name}'" for rule in claimants)
            raise ConfigError(f"{names} both claim '{name}': narrow the names of one of them.")
    return {
        name: _replace(module, name, claimants[0].convert)
        for name, claimants in claims.items()
        if claimants
    }


def _check_matches(rule: PatchRule, modules: dict[str, nn.Module]) -> None:
    types = rule.target if isinstance(rule.target, tuple) else (rule.target,)
    candidates = [name for name, child in modules.items() if type(child) in types]
    for glob in rule.names:
        if not any(fnmatchcase(name, glob) for name in candidates):
            kinds = " or ".join(t.__name__ for t in types)
            raise ConfigError(
                f"Rule '{rule.name}': no {kinds} is called '{glob}' in this encoder. "
                + did_you_mean(glob, candidates)
            )


def _replace(root: nn.Module, name: str, convert: Callable[[nn.Module], nn.Module]) -> nn.Module:
    parent, _, child = name.rpartition(".")
    owner = root.get_submodule(parent)
    new = convert(getattr(owner, child))
    setattr(owner, child, new)
    return new
