"""The process in which llama.cpp runs: reads one JSON job from standard input, writes logits to a .npy file.

Its text is handed to ``python -c``. The job: ``file`` (GGUF), ``tokens`` (rows of ids), ``out``.
"""

import json
import sys

import numpy as np
from llama_cpp import Llama


def main() -> None:
    job = json.load(sys.stdin)
    length = max(len(row) for row in job["tokens"])
    model = Llama(job["file"], n_ctx=length, n_batch=length, logits_all=True, n_gpu_layers=0, verbose=False)
    rows = []
    for row in job["tokens"]:
        model.reset()
        model.eval(row)
        rows.append(np.array(model.scores[: len(row)], dtype=np.float32))
    np.save(job["out"], np.stack(rows))


if __name__ == "__main__":
    main()
