"""A tokenizer of bytes, and task files for lm-eval of a few lines."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 256


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def write_task(folder: Path, name: str = "piqa_tiny", items: int = 7, version: float = 1.0) -> Path:
    """Write a multiple-choice task with both accuracies, whose choices differ in length; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "goal": f"Add {i} to {i * 3 % 5}.",
            "choices": [f"It is {i}", f"The sum of both is {i + i * 3 % 5}"],
            "gold": i % 2,
        }
        for i in range(items)
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / f"{name}.yaml").write_text(
        f"""task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / f"{name}.jsonl"}}}, cache_dir: {folder / "cache"}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{goal}}}}"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: {version}}}
"""
    )
    return folder


def write_perplexity_task(folder: Path, name: str = "lambada_tiny") -> Path:
    """Write a task of last words with a perplexity over its items' log-likelihoods; return its folder."""
    write_task(folder, name)
    file = folder / f"{name}.yaml"
    kept = [line for line in file.read_text().splitlines() if line.startswith(("task", "data", "test", "metadata"))]
    file.write_text(
        "\n".join(kept)
        + """
output_type: loglikelihood
doc_to_text: "{{goal}}"
doc_to_target: " {{choices[gold]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
    )
    return folder
