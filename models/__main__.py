"""Lists the models, or the options of some: ``python -m models [NAME ...]``."""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any, get_args, get_origin, get_type_hints

import models


def main() -> None:
    """Prints what was asked for; an unknown name is one line and exit code 1."""
    try:
        if len(sys.argv) == 1:
            for name in models.names():
                print(f"{name:12} {first_sentence(models.model_class(name))}")
            print("\npython -m models NAME lists the options of one.")
        for name in sys.argv[1:]:
            print(describe(name))
    except ValueError as error:
        sys.exit(f"models: {error}")


def describe(name: str) -> str:
    """A model's options, with types, defaults and what its docstring says of them.

    Raises:
        ValueError: there is no such model.
    """
    cls: Any = models.model_class(name)
    hints = get_type_hints(cls.__init__)
    lines = [f"{name}: {first_sentence(cls)}", ""]
    lines += [
        f"  {option}: {type_name(hints[option])}"
        + ("" if parameter.default is parameter.empty else f" = {parameter.default!r}")
        for option, parameter in inspect.signature(cls).parameters.items()
    ]
    _, _, arguments = (inspect.getdoc(cls) or "").partition("Args:\n")
    explained, _, _ = arguments.partition("\n\nRaises:")
    return "\n".join([*lines, "", textwrap.indent(textwrap.dedent(explained).rstrip(), "  "), ""])


def type_name(hint: Any) -> str:
    """A type as a person writes it: a choice is its values."""
    if str(get_origin(hint)) == "typing.Literal":
        return " | ".join(map(repr, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def first_sentence(cls: type) -> str:
    """What a class says of itself first."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


if __name__ == "__main__":
    main()
