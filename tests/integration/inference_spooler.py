"""Program that fills a spool until it is killed, printing each record's number: `inference_spooler.py SPOOL`."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

from services.inference.spool import Spool
from shared.records import Output

spool = Spool(Path(sys.argv[1]), 1 << 26)
for number in count():
    spool.add(
        Output("chat.responses", f"r{number}".encode(), b"x" * 500, (("ce_id", f"r{number}".encode()),))
    )
    print(number, flush=True)
