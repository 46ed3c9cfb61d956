"""Writes a coordinator's data folder as text, for tests of upgrades: state.sql (SQLite's own dump) and payloads.json
(segment file to base64). Run it once for each release, on the folder of a short load run with that release's binaries:

  rlhf-load-generator --coordinator OLD/rlhf-coordinator --protocol-version V --insecure --dir DIR \
      --workers 2 --rate 40 --samples-per-lease 2 --response-tokens 4 --samples-per-step 8 --checkpoint-every 2 \
      --warmup 0 --seconds 1 --leave-running
  python3 tests/golden/generate_store.py DIR/data tests/golden/store_vN
"""
import base64
import json
import pathlib
import sqlite3
import sys

data, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
database = sqlite3.connect(data / "state.db")
version = database.execute("PRAGMA user_version").fetchone()[0]
lines = [f"PRAGMA user_version={version};", *database.iterdump()]
(out / "state.sql").write_text("\n".join(lines) + "\n", encoding="utf-8")
segments = {
    path.name: base64.b64encode(path.read_bytes()).decode() for path in sorted((data / "payloads").glob("*.seg"))
}
(out / "payloads.json").write_text(json.dumps(segments, indent=1) + "\n", encoding="utf-8")
