"""Values of options as they are written, what options mean, and a parser that shows defaults and nearest options."""

import argparse
import copy
import enum
import re

from util import closest


def boolean(text: str) -> bool:
    """Parse the documented commands' spelling of a boolean."""
    if text.lower() in ("true", "t", "yes", "y", "on", "1"):
        return True
    if text.lower() in ("false", "f", "no", "n", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def integer(text: str) -> int:
    """Parse a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    value = integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def fraction(text: str) -> float:
    """Parse a number in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not in [0, 1]")
    return value


def positive(text: str) -> float:
    """Parse a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def count(text: str) -> int:
    """Parse an integer of at least 0."""
    value = integer(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def integers(text: str) -> tuple[int, ...]:
    """Comma-separated integers."""
    return tuple(int(x) for x in text.split(","))


def three_numbers(text: str) -> tuple[float, ...]:
    """Parse a mean or std per channel, such as "(0.5, 0.5, 0.5)"."""
    values = tuple(float(x) for x in text.strip("()[] ").split(","))
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers")
    return values


def three_positive(text: str) -> tuple[float, ...]:
    """Three numbers above 0."""
    values = three_numbers(text)
    if min(values) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} holds a number that is not above 0")
    return values


def crop_scale(text: str) -> tuple[float, ...]:
    """Two shares of an image's area, as 0.2,1; or none, ()."""
    values = tuple(float(x) for x in text.split(",")) if text.lower() != "none" else ()
    if values and not (len(values) == 2 and 0 < values[0] <= values[1] <= 1):
        raise argparse.ArgumentTypeError(f"{text!r} must be two shares of the area, such as 0.2,1, or none")
    return values


def strength(text: str) -> float:
    """Parse a number in [0, 2.5]; none: 0."""
    value = float(text) if text.lower() != "none" else 0.0
    if not 0 <= value <= 2.5:
        raise argparse.ArgumentTypeError(f"{value} is not in [0, 2.5]")
    return value


def share(text: str) -> float:
    """Parse a number in [0, 1]; none: 0."""
    return fraction(text) if text.lower() != "none" else 0.0


def flag(group, *names: str, default: bool = False, help: str, means: "Means | None" = None) -> None:
    """Declare a boolean that may stand alone."""
    how = {"type": boolean, "nargs": "?", "const": True, "default": default, "metavar": "BOOL"}
    group.add_argument(*names, help=help, means=means, **how)


class Means(enum.Flag):
    """What an option means to a run, its resume, a record and a card; said where the option, or its group, is declared.

    RESULT alone: it makes a result what it is. A resume that changes it names it, and another value is another record.
    """

    RESULT = 0
    FIXED = enum.auto()  # no resume may change it: the weights would mean something else
    FREE = enum.auto()  # a resume may change it without a word: the mathematics stays as it is
    UNHASHED = enum.auto()  # the hash in a record's name leaves it out
    AS_DEFAULT = enum.auto()  # that hash has its default instead
    START = enum.auto()  # how a run is started, not what it is: neither in its config.yaml nor in a command's meaning
    IMAGES = enum.auto()  # an evaluation takes it from a training's config.yaml: which images, and their views
    SUBSET = enum.auto()  # which of the images at hand are trained on
    CARD = enum.auto()  # an exported encoder's card tells it: what the features mean
    FILE = enum.auto()  # may name a file, or a folder with a checkpoint: its check sum stands beside the result
    PIXELS = enum.auto()  # of images: refused with --features
    VECTORS = enum.auto()  # of features: refused without them, and in the hash where it is given
    GIVEN = enum.auto()  # in the hash where it is given
    RUNNING = FREE | UNHASHED  # where, how fast and how long something runs
    RUNNING_SINCE = FREE | AS_DEFAULT  # likewise, of options that stand in the hashes of older records


# type -> what stands for its value in --help: N a whole number, P one in [0, 1], X any other
LETTERS = {
    "positive_int": "N", "count": "N", "int": "N", "float": "X", "positive": "X", "strength": "X", "fraction": "P",
    "share": "P",
}  # fmt: skip
LONGEST_CHOICES = 20  # characters; more of them are listed in the help instead of the metavar


def as_typed(value) -> str:
    """Return a default as one would type it."""
    if isinstance(value, (tuple, list)):
        return (" " if isinstance(value, list) else ",").join(map(as_typed, value))
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def describe(action: argparse.Action) -> str:
    """Return an option's help with its choices, where these are long, and its default, if it has one."""
    text, before_default, rest = action.help.partition(" (default: ")
    if _long_choices(action):
        text += f"; one of {', '.join(map(str, action.choices))}"
    shown = action.nargs != 0 and action.default not in (None, argparse.SUPPRESS) and action.default != []
    if shown and not before_default:
        before_default, rest = " (default: ", f"{as_typed(action.default)})"
    return text + before_default + rest


def _long_choices(action: argparse.Action) -> bool:
    choices = action.choices if action.metavar is None and action.option_strings else None
    return len(",".join(map(str, choices or ()))) > LONGEST_CHOICES


class Help(argparse.RawDescriptionHelpFormatter):
    """One line per option where it fits, under its first name; keeps the description's lines."""

    def __init__(self, prog, **kwargs):
        super().__init__(prog, **{"max_help_position": 30, **kwargs})

    def _get_help_string(self, action):
        return describe(action)

    def _get_default_metavar_for_optional(self, action):
        return LETTERS.get(getattr(action.type, "__name__", ""), "NAME")

    def _metavar_formatter(self, action, default_metavar):
        if _long_choices(action):
            return lambda size: ("NAME",) * size
        return super()._metavar_formatter(action, default_metavar)

    def _format_action_invocation(self, action):
        if not action.option_strings or action.option_strings[0] == "-h":
            return super()._format_action_invocation(action)
        values = self._format_args(action, self._get_default_metavar_for_optional(action)) if action.nargs != 0 else ""
        return f"{action.option_strings[0]} {values}".rstrip()


class Options(argparse.Namespace):
    """What a parser read; and beside the options, so that `vars` has them alone: by option, what it means, its default
    and its first spelling, and the check sums of files (`config.files_of`).
    """

    __slots__ = ("defaults", "files", "means", "spelling")


class _Declaring:
    """Takes `means` with an option; without, an option means what its group does. An option is shown in its group under
    its first name; its other names are shown in the last group, `compatibility`.
    """

    means = None
    compatibility = None

    def add_argument(self, *names, means=None, **how):
        action = super().add_argument(*names, **how)
        action.means = self.means if means is None else means
        for name in names[1:] if names[0].startswith("--") else ():
            shown = copy.copy(action)
            shown.option_strings, shown.default = [name], None
            shown.help = action.help if self is self.compatibility else f"other spelling of {names[0]}"
            self.compatibility._group_actions.append(shown)
        return action


class Group(_Declaring, argparse._ArgumentGroup):
    """A group of options that mean the same where they do not say otherwise."""

    def __init__(self, parser, *args, means=None, **how):
        super().__init__(parser, *args, **how)
        self.means, self.compatibility = means, parser.compatibility or self


class Parser(_Declaring, argparse.ArgumentParser):
    """Names the options nearest to unknown ones. exit_with(message): what ends it, argparse's way if None."""

    exit_with = None

    def __init__(self, *args, formatter_class=Help, **how):
        super().__init__(*args, formatter_class=formatter_class, **how)
        about = "spellings of the official implementation and of earlier versions, with the modern form"
        self.compatibility = self.add_argument_group(f"compatibility ({about})", means=Means.RESULT)
        self.needed = {}  # option that must be given -> the one that makes it needless

    def meanings(self) -> dict[str, Means]:
        """Return what each option means, by its name."""
        return {a.dest: getattr(a, "means", None) or Means.RESULT for a in self._actions}

    def add_argument_group(self, *args, **how):
        group = Group(self, *args, **how)
        self._action_groups.append(group)
        self._action_groups.sort(key=lambda other: other is self.compatibility)
        return group

    def parse_known_args(self, words=None, namespace=None):
        if namespace is None:
            namespace = Options()
            namespace.means = self.meanings()
            namespace.defaults = {a.dest: a.default for a in self._actions}
            namespace.spelling = {a.dest: a.option_strings[0] for a in self._actions if a.option_strings}
        found, rest = super().parse_known_args(words, namespace)
        for name, other in self.needed.items():
            if not getattr(found, name) and not getattr(found, other):
                self.error(f"the following arguments are required: --{name}")
        return found, rest

    def error(self, message):
        unknown = re.findall(r"--[^\s=]+", message) if message.startswith("unrecognized arguments: ") else []
        below = [a.choices.values() for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        parsers = [self, *(p for of in below for p in of)]
        known = [name for p in parsers for action in p._actions for name in action.option_strings]
        meant = dict.fromkeys(filter(None, (closest(name, known) for name in unknown)))
        message += f"; did you mean {' and '.join(meant)}?" if meant else ""
        (self.exit_with or super().error)(message)
