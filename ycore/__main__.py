"""`python -m ycore`: the command that is installed with it. The core itself knows none."""

import sys
from importlib.metadata import PackageNotFoundError, distribution

try:
    [_command] = distribution("ycore").entry_points.select(name="ycore")
except PackageNotFoundError:
    sys.exit("Error: ycore is not installed: pip install '.[server]' where its source is")
sys.exit(_command.load()())
