"""The shape of the Python in this checkout as figures: sizes, names, docstrings, imports.

    python -m benchmarks.structure [--json] [--check] [--list KIND] [FOLDER...]

    git ls-files -> Tree of paths -> a Module of facts per file (ast, tokenize) -> Row per folder

Files are parsed, never imported; which modules are ours follows from the paths alone. The table is
for people and always exits 0; --check exits 1 for an import cycle or a hidden import.

    binding      a distinct name in a scope: parameters, targets of assignments, for, with, except,
                 import-as, walrus, comprehensions and match; `_` is none
    one-letter   `x` or `_x`, except i, j, k, n bound to integers by a loop only (index), and all of
                 a file with a line `# structure: mathematics` and a reason after it (maths)
    participle   a function whose first word is one: `found`, `_kept`, `signed_by`; not test_*
    undocumented a public module, class or function without a docstring; not test_*, not a file
                 without code
    prose        lines with a comment or in a docstring, of all lines that are not blank
    hidden       an import of ours in a function body, or by a string handed to need(),
                 import_module() and their like anywhere
    cycle        modules that import each other at run time, at module level, not below
                 TYPE_CHECKING; of a package only the module that is named
    in, out      other folders that import this one, that it imports; at `/**` other top folders, at
                 `all` the arrows between folders
"""
