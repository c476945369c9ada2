"""GPT-2 in pure NumPy, forward and backward, with LoRA.

The files at the top and the folder ops/ are the path: read them in the order in which they stand here. Each folder says
in its own __init__.py what is in it, in which order to read it, and what it may import. A file imports only from files
and folders above it in these lists.

    runtime/     errors, random numbers, threads, memory: what everything stands on
    files/       where models are, and how tensors, models and tokenizers are read and written
    autograd.py  Tensor, the record of operations, backward: knows no operation
    ops/         every differentiable operation: formula, derivation, both directions
    nn.py        layers: parameters and their names
    language_model.py  what every model shares, from hidden states to the loss
    gpt2.py      the model, from its configuration to its hidden states
    lora.py      LoRA: A, B, the scale, dropout, add, merge
    optim.py     AdamW, clipping, learning-rate schedules
    batch.py     sequences laid end to end, with what each token should predict
    adapters/    what an adapter can be beyond plain LoRA, several at once, PEFT's files
    exchange/    files of other programs; merged models
    data/        from files to the batches of each step
    generation/  text from a model
    evaluation/  how good a model is
    inspection/  what a model does with a text, what an adapter is
    checking/    finite differences
    training/    a training run: its steps, its folder, its cost, its report
    texts/       the texts that the first run learns from
    tiny/        the embedded model
"""

from npgpt.adapters.combine import add_weighted_adapter
from npgpt.adapters.lora_config import LoraConfig
from npgpt.adapters.mixed_batch import mixed_batch
from npgpt.adapters.peft import load_adapter, save_adapter
from npgpt.adapters.stack import add_lora, delete_adapter, disable_adapter, merge_lora, set_adapter
from npgpt.autograd import Tensor, backward
from npgpt.batch import Batch
from npgpt.checking.gradcheck import gradcheck
from npgpt.evaluation.evaluate import perplexity
from npgpt.files.tokenizer import Tokenizer
from npgpt.generation.beam import beam_search
from npgpt.generation.generate import generate, generate_batch, stream
from npgpt.gpt2 import GPT2, GPT2Config
from npgpt.optim import AdamW, clip_grad_norm
from npgpt.runtime.errors import NpgptError
from npgpt.training.train import train_step

__all__ = [
    "GPT2", "AdamW", "Batch", "GPT2Config", "LoraConfig", "NpgptError", "Tensor", "Tokenizer", "add_lora",
    "add_weighted_adapter", "backward", "beam_search", "clip_grad_norm", "delete_adapter", "disable_adapter",
    "generate", "generate_batch", "gradcheck", "load_adapter", "merge_lora", "mixed_batch", "perplexity",
    "save_adapter", "set_adapter", "stream", "train_step",
]
