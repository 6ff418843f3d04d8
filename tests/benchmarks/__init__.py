"""What is measured."""

from cluster.process import set_up_process

set_up_process()  # as commands do, before torch is loaded
