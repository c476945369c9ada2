"""Score examples.json with the programs that the published numbers come from, and write the scores into it.

    python tests/metrics/make_examples.py E2E_METRICS

E2E_METRICS is a checkout of github.com/tuetschek/e2e-metrics (commit 1b9c4d8), whose Perl and Java
run as they are: mteval-v13a for BLEU and NIST, the Stanford tokenizer and coco-caption for ROUGE-L and CIDEr.
"""

import json
import sys
from pathlib import Path

FILE = Path(__file__).with_name("examples.json")


def main(checkout):
    sys.path.insert(0, checkout)
    from measure_scores import run_mteval
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    examples = json.loads(FILE.read_text(encoding="utf-8"))
    outputs, references = examples["outputs"], examples["references"]
    tokenizer = PTBTokenizer()
    ours = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(outputs)})
    theirs = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(references)})
    examples["words_ptb"] = [texts[0] for texts in ours.values()]
    rouge, each_rouge = Rouge().compute_score(theirs, ours)
    cider, each_cider = Cider().compute_score(theirs, ours)
    examples["scores"] = {**run_mteval(references, outputs, [""] * len(outputs)), "ROUGE-L": rouge, "CIDEr": cider}
    examples["each"] = {"ROUGE-L": each_rouge.tolist(), "CIDEr": each_cider.tolist()}
    FILE.write_text(json.dumps(examples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
