"""GPT-2 in pure NumPy, forward and backward, with LoRA."""

from npgpt.adapter import load_adapter, save_adapter
from npgpt.autograd import Tensor, backward
from npgpt.batch import Batch
from npgpt.beam import beam_search
from npgpt.combine import add_weighted_adapter
from npgpt.errors import NpgptError
from npgpt.evaluate import perplexity
from npgpt.generate import generate, generate_batch, stream
from npgpt.gpt2 import GPT2, GPT2Config
from npgpt.gradcheck import gradcheck
from npgpt.lora import add_lora, delete_adapter, disable_adapter, merge_lora, mixed_batch, set_adapter
from npgpt.lora_config import LoraConfig
from npgpt.optim import AdamW, clip_grad_norm
from npgpt.tokenizer import Tokenizer
from npgpt.train import train_step

__all__ = [
    "GPT2", "AdamW", "Batch", "GPT2Config", "LoraConfig", "NpgptError", "Tensor", "Tokenizer", "add_lora",
    "add_weighted_adapter", "backward", "beam_search", "clip_grad_norm", "delete_adapter", "disable_adapter",
    "generate", "generate_batch", "gradcheck", "load_adapter", "merge_lora", "mixed_batch", "perplexity",
    "save_adapter", "set_adapter", "stream", "train_step",
]
