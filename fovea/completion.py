"""fovea completion bash | zsh: a script that completes commands, options, settings and their values.

  bash:  fovea completion bash > ~/.local/share/bash-completion/completions/fovea
  zsh:   fovea completion zsh > a/folder/of/fpath/_fovea

It is generated from the current parsers and settings, and runs nothing when a key is pressed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module

from cluster.command_line import CommandLine
from cluster.schemas import described
from fovea.__main__ import COMMANDS

# the words behind a command, and those behind an option or `key=`; both shells read this alike
_WORDS = """_fovea_words() {{
  case "$1" in
{commands}
  esac
}}

_fovea_values() {{
  case "$1 $2" in
{values}
  esac
}}
"""
_BASH = """# completion of fovea for bash; made by: fovea completion bash
{words}
_fovea() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}}
  local key is_value="" at="" word words
  # readline takes `key=value` for three words
  if [[ $current == "=" ]]; then key=$before current="" is_value=1
  elif [[ $before == "=" ]]; then key=${{COMP_WORDS[COMP_CWORD - 2]}} is_value=1
  else key=$before; fi
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD - 1}}"; do
    [[ -n $(_fovea_words "${{at:+$at }}$word") ]] && at=${{at:+$at }}$word
  done
  words=$(_fovea_values "$at" "$key")
  [[ -z $words && -z $is_value ]] && words=$(_fovea_words "$at")
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [[ ${{COMPREPLY[0]}} == *= ]]; then compopt -o nospace; fi
}}
complete -o bashdefault -o default -F _fovea fovea
"""
_ZSH = """#compdef fovea
# completion of fovea for zsh; made by: fovea completion zsh
{words}
_fovea() {{
  local at="" word key=""
  local -a found
  for word in "${{words[@]:1:$((CURRENT - 2))}}"; do
    [[ -n $(_fovea_words "${{at:+$at }}$word") ]] && at="${{at:+$at }}$word"
  done
  word=$words[CURRENT]
  if [[ $word == *=* ]]; then
    key=${{word%%=*}}
    compset -P '*='
    found=(${{=$(_fovea_values "$at" "$key")}})
  else
    found=(${{=$(_fovea_values "$at" "$words[CURRENT-1]")}})
    (( $#found )) || found=(${{=$(_fovea_words "$at")}})
  fi
  compadd -S '' -- ${{(M)found:#*=}}
  compadd -- ${{found:#*=}}
  _files
}}
# zsh takes this file for the function of its name, and calls it when a key is pressed for the first time
if [[ $funcstack[1] == _fovea ]]; then _fovea "$@"; else compdef _fovea fovea; fi
"""


@dataclass
class Words:
    """What may stand behind a command: words, and the values of those that take one."""

    words: list[str] = field(default_factory=list)
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)


def parser() -> CommandLine:
    """The command line."""
    parser = CommandLine(
        prog="fovea completion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=["bash", "zsh"])
    return parser


def main(arguments: Sequence[str]) -> int:
    """Prints the script for a shell."""
    print(script(parser().parse_args(arguments).shell))
    return 0


def script(shell: str) -> str:
    """The script for bash or zsh."""
    tree = command_tree()
    commands = [
        f'    "{path}") echo "{" ".join(found.words)}" ;;' for path, found in tree.items() if found.words
    ]
    values = [
        f'    "{path} {key}") echo "{" ".join(choices)}" ;;'
        for path, found in tree.items()
        for key, choices in found.values.items()
    ]
    words = _WORDS.format(commands="\n".join(commands), values="\n".join(values))
    return {"bash": _BASH, "zsh": _ZSH}[shell].format(words=words)


def command_tree() -> dict[str, Words]:
    """What may stand behind each command, by its words (`finetune predict`);
    the empty text is `fovea` itself.
    """
    from finetune.__main__ import COMMANDS as FINETUNE
    from finetune.settings import FinetuneSettings
    from pretrain.__main__ import COMMANDS as PRETRAIN
    from pretrain.settings import PretrainSettings

    tree = {"": Words([*COMMANDS, "--help"]), "completion": Words(["bash", "zsh"])}
    for name, schema, commands in (
        ("pretrain", PretrainSettings, PRETRAIN),
        ("finetune", FinetuneSettings, FINETUNE),
    ):
        settings = list(described(schema))
        values = {
            one.key: one.choices or _TRUTH[one.kind] for one in settings if one.choices or one.kind in _TRUTH
        }
        tree[name] = Words([*commands, "--check", "--help", *(f"{one.key}=" for one in settings)], values)
        for command, entry in commands.items():
            tree |= _of_parser(f"{name} {command}", entry.parser())
    tree["serve"] = tree["finetune serve"]
    tree |= _of_parser("data", import_module(COMMANDS["data"].module).parser())
    tree |= _of_parser("demo", import_module(COMMANDS["demo"].module).parser())
    for path, found in _of_parser("", import_module(COMMANDS["submit"].module).parser()).items():
        if path:
            tree[path] = found
    return tree


_TRUTH = {"bool": ("true", "false"), "bool | None": ("true", "false", "null")}


def _of_parser(path: str, parser: argparse.ArgumentParser) -> dict[str, Words]:
    tree = {path: Words()}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            tree[path].words += action.choices
            for name, inner in action.choices.items():
                tree |= _of_parser(f"{path} {name}".strip(), inner)
        elif action.option_strings and action.help != argparse.SUPPRESS:
            tree[path].words.append(action.option_strings[-1])
            if action.choices:
                tree[path].values[action.option_strings[-1]] = tuple(map(str, action.choices))
    return tree
