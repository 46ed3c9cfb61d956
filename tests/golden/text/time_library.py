"""Encoding speed of the `tokenizers` library on one thread:  time_library.py DIR FILE   (FILE: a JSON string a line). Prints what `encode_tool time` prints."""
import json
import os
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
import tokenizers  # noqa: E402: reads the environment

tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
texts = [json.loads(line) for line in open(sys.argv[2], encoding="ascii")]
seconds = []
for _ in range(5):
    start = time.perf_counter()
    tokenizer.encode_batch_fast(texts)  # without offsets: the library's fastest way
    seconds.append(time.perf_counter() - start)
print(json.dumps({"bytes": sum(len(t.encode()) for t in texts), "seconds": seconds}))
