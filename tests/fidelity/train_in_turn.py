"""Under torchrun: train once for every list of arguments in a JSON file, all in the same processes."""

import json
import sys
from pathlib import Path

from fastdense.train import main

for arguments in json.loads(Path(sys.argv[1]).read_text()):
    main(arguments)
