"""python -m finetune CONFIG [key=value ...]"""

from __future__ import annotations

import sys

from cluster.errors import run_command
from cluster.settings import describe, load_settings
from finetune.settings import FinetuneSettings

USAGE = """usage: python -m finetune CONFIG [key=value ...]

Turns an encoder into a task model. CONFIG is a YAML file (see configs/finetune/), any setting can be given or changed as
key=value:

  python -m finetune configs/finetune/classification.yaml encoder=runs/first/encoder data.url=my/train \
      validation_url=my/validation out=runs/classifier

The same command again continues a run that was cut off. Settings:
"""


def main(arguments: list[str]) -> int:
    """Reads the command line and runs."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + describe(FinetuneSettings))
        return 0 if arguments else 2
    settings = load_settings(FinetuneSettings, arguments[0], arguments[1:])
    from finetune.run import run  # after the settings are known to be right: torch takes seconds to import

    return run(settings)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
