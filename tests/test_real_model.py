"""A real trained GPT-2, where one is at hand: chemts-zinc-gpt2-0.2m, which writes molecules as SMILES.

The model and its data are not part of the project. Where the folder is absent, these tests are not defined.
"""

import json
import re
from pathlib import Path

import numpy as np

import npgpt
from npgpt.evaluation.evaluate import mean_nll

SHARED = Path(__file__).parents[2] / "shared"
MODEL = SHARED / "models" / "chemts-zinc-gpt2-0.2m"
SMILES_TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|%\d\d|.")

if MODEL.is_dir():

    def test_logits_and_loss_are_those_of_transformers():
        reference = np.load(MODEL / "reference.npz")
        model = npgpt.GPT2.from_pretrained(MODEL)
        np.testing.assert_allclose(model.logits(reference["input_ids"]), reference["logits"], atol=1e-4)
        batch = npgpt.Batch.from_sequences([reference["input_ids"]])
        assert abs(float(model.loss(batch).data) - float(reference["loss"])) < 1e-5

    def test_mean_loss_on_molecules():
        vocabulary = json.loads((MODEL / "tokenizer.json").read_text())["model"]["vocab"]
        bos, eos = 13, 14
        lines = (SHARED / "data" / "zinc-smiles-test.txt").read_text().split()
        sequences = [np.array([bos, *(vocabulary[token] for token in SMILES_TOKEN.findall(line)), eos])
                     for line in lines]
        result = mean_nll(npgpt.GPT2.from_pretrained(MODEL), sequences)
        assert len(sequences) == 5000
        assert abs(result.nll - 0.648) < 0.002
