"""npgpt as a model in EleutherAI's lm-evaluation-harness. Importing this module registers it under the name `npgpt`.

    pip install '.[lm-eval]'
    python scripts/harness.py run --model npgpt --model_args model=gpt2,adapter=runs/mine/adapter --tasks lambada_openai

Only this module needs the package lm_eval.
"""

import numpy as np
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from npgpt.adapters.peft import load_adapter
from npgpt.adapters.pretrained import base_of
from npgpt.evaluation import evaluate
from npgpt.evaluation.pairs import encode_pair
from npgpt.evaluation.questions import answers


@register_model("npgpt")
class NpgptLM(LM):
    """GPT-2 in NumPy, with or without an adapter. `lm_eval.api.model.LM` defines what each method must do.

    model         hub id, folder or "tiny"
    adapter       folder of a LoRA adapter, or None
    batch_tokens  tokens in a batch, about

    The harness also passes batch_size, max_batch_size and device to every model. They have no effect here: there is no
    padding to save, and only one kind of device.
    """

    def __init__(self, model="gpt2", adapter=None, revision=None, batch_tokens=evaluate.BATCH_TOKENS, batch_size=None,
                 max_batch_size=None, device=None):
        super().__init__()
        self.model, self.tokenizer = base_of(model, revision, [] if adapter is None else [adapter])
        if adapter is not None:
            load_adapter(self.model, adapter, trainable=False)
        self.batch_tokens = int(batch_tokens)

    def _losses(self, windows):
        """Return (nll, greedy) of each window, in their order."""
        found = {i: (nll, greedy) for i, nll, greedy in evaluate.window_losses(self.model, windows, self.batch_tokens)}
        return [found[i] for i in range(len(windows))]

    def loglikelihood(self, requests, disable_tqdm=False):
        """(context, continuation) -> [(log p of the continuation, whether greedy decoding would write it), ...]"""
        context = self.model.config.n_positions
        pairs = [encode_pair(self.tokenizer, *request.args, split_special_tokens=False) for request in requests]
        windows = [evaluate.continuation(*pair, context) for pair in pairs]
        results = [(-float(nll.sum()), bool(greedy.all())) for nll, greedy in self._losses(windows)]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return results

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """(text,) -> [log p of the text after an end of text, ...], by the protocol `document` of `evaluate`."""
        windows, spans, owners = [], [], []
        for i, request in enumerate(requests):
            ids = np.append(self.tokenizer.eos_id, *self.tokenizer.encode_batch([request.args[0]]))
            for span in evaluate.document_spans(len(ids), self.model.config.n_positions):
                windows.append(evaluate.window(ids, *span[:2]))
                spans.append(span)
                owners.append(i)
        totals = np.zeros(len(requests))
        for i, span, (nll, _) in zip(owners, spans, self._losses(windows), strict=True):
            totals[i] -= evaluate.sum_of_counted(nll, span)[0]
        for request, total in zip(requests, totals.tolist(), strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals.tolist()

    def generate_until(self, requests, disable_tqdm=False):
        """(context, {"until": [...], "max_gen_toks": 256, "do_sample": False, "temperature": 0, ...}) -> [text, ...]

        If a context leaves no room for so many tokens, only its end is read. Sampled texts use seed 0.
        """
        context, texts = self.model.config.n_positions, []
        for request in requests:
            options = request.args[1]
            until = options.get("until") or []
            sampling = {name: options[name] for name in ("top_k", "top_p") if name in options}
            temperature = options.get("temperature", 1.0) if options.get("do_sample", False) else 0
            texts += answers(self.model, self.tokenizer, self.tokenizer.encode_batch([request.args[0]]),
                             min(options.get("max_gen_toks", 256), context - 1),
                             [until] if isinstance(until, str) else until, temperature=temperature, seed=0, **sampling)
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts
