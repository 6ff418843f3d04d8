"""python -m pretrain CONFIG [key=value ...]"""

from __future__ import annotations

import sys

from cluster.errors import run_command
from cluster.settings import describe, load_settings
from pretrain.settings import PretrainSettings

USAGE = """usage: python -m pretrain CONFIG [key=value ...]

Learns an encoder from images without labels. CONFIG is a YAML file (see configs/pretrain/), any setting can be given or
changed as key=value:

  python -m pretrain configs/pretrain/simclr.yaml data.url=my/shards out=runs/first

The same command again continues a run that was cut off. Settings:
"""


def main(arguments: list[str]) -> int:
    """Reads the command line and runs."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + describe(PretrainSettings))
        return 0 if arguments else 2
    settings = load_settings(PretrainSettings, arguments[0], arguments[1:])
    from pretrain.run import run  # after the settings are known to be right: torch takes seconds to import

    return run(settings)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
