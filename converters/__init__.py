"""From a model to the files that devices run: a folder a format, a module or object a recipe."""
