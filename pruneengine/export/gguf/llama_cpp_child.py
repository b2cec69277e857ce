"""Process that runs llama.cpp; its text is passed to ``python -c``.

Reads one JSON job from standard input: ``file`` (GGUF) and either ``tokens`` (rows of ids) with ``threads`` and ``out``
(the .npy file to write their logits to) or ``text``, whose ids it writes to standard output.
"""

import json
import sys

import numpy as np
from llama_cpp import Llama


def main() -> None:
    job = json.load(sys.stdin)
    if "text" in job:
        model = Llama(job["file"], vocab_only=True, verbose=False)
        print(json.dumps(model.tokenize(job["text"].encode("utf-8"), add_bos=True, special=True)))
        return
    length = max(len(row) for row in job["tokens"])
    model = Llama(
        job["file"], n_ctx=length, n_batch=length, n_threads=job["threads"], n_threads_batch=job["threads"],
        logits_all=True, n_gpu_layers=0, verbose=False,
    )  # fmt: skip
    rows = []
    for row in job["tokens"]:
        model.reset()
        model.eval(row)
        rows.append(np.array(model.scores[: len(row)], dtype=np.float32))
    np.save(job["out"], np.stack(rows))


if __name__ == "__main__":
    main()
