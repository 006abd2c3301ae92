"""Recipes: whole settings of published works as TOML files, with what is published beside them.

A recipe is a config file, as ``--config`` reads it, and beside it

* ``[recipe]``: title, source, notes, methods to compare, seeds, and ``[[recipe.published]]``, the published numbers;
* ``[methods.NAME]``: what is laid over the config for one method, with its own options in ``[methods.NAME.method]``.

The files of this folder are the shipped ones: ``fastmeta train --config cifar10-a``, ``fastmeta compare cifar10-a``.
"""

from fastmeta.recipes.reader import names, read
from fastmeta.recipes.recipe import Published, Recipe

__all__ = ["Published", "Recipe", "names", "read"]
