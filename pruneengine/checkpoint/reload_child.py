"""Fresh process of the reload proof, which opens a checkpoint with transformers alone.

Its text is handed to ``python -c``, so that nothing of pruneengine is on the way. Reads one JSON job from standard
input: ``folder``, ``auto_class``, ``trust_remote_code``, ``device``, ``attention`` (implementation or null),
``precision`` (float32 matmul) and either ``tokens`` with ``logits`` (the file to write them to) or ``prompt`` with
``max_new_tokens``.
Writes one JSON line to standard output.
"""

import json
import sys

import torch
import transformers
from transformers import AutoTokenizer


@torch.inference_mode()
def main() -> None:
    job = json.load(sys.stdin)
    torch.set_float32_matmul_precision(job["precision"])
    options = {"attn_implementation": job["attention"]} if job["attention"] else {}
    model, loading = getattr(transformers, job["auto_class"]).from_pretrained(
        job["folder"],
        trust_remote_code=job["trust_remote_code"],
        local_files_only=True,
        dtype="auto",
        output_loading_info=True,
        **options,
    )
    model = model.to(job["device"]).eval()
    answer = {"dtype": str(model.dtype), "wrong_keys": sorted(str(key) for keys in loading.values() for key in keys)}
    if "prompt" in job:
        tokenizer = AutoTokenizer.from_pretrained(job["folder"], local_files_only=True)
        inputs = tokenizer(job["prompt"], return_tensors="pt").to(job["device"])
        tokens = model.generate(**inputs, max_new_tokens=job["max_new_tokens"], do_sample=False)
        answer["text"] = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    else:
        from safetensors.torch import save_file

        logits = model(torch.tensor(job["tokens"], device=job["device"])).logits
        save_file({"logits": logits.float().cpu().contiguous()}, job["logits"])
        if job["text"] is not None:
            answer["ids"] = AutoTokenizer.from_pretrained(job["folder"], local_files_only=True)(job["text"])[
                "input_ids"
            ]
    assert not any(name.split(".")[0] == "pruneengine" for name in sys.modules), "pruneengine was imported"
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
