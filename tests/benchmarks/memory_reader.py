"""The process that `tests.benchmarks.memory` measures:
reads URL with a budget of MIB and prints its peak memory in MiB.
"""

import sys

from tests.benchmarks.memory import read

if __name__ == "__main__":
    print(read(sys.argv[1], int(sys.argv[2])))
