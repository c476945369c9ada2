"""Measure speed and memory of npgpt on the shapes of gpt2 and gpt2-medium, and the limit set by the matrix products.

Each figure is the median of several runs after a warm-up, in a process of its own. The limit of a training step is the
time that its matrix products alone take, on arrays of the same shapes, with the same BLAS and the same threads. The
limit of decoding is the time that reading the weights once takes. --peers also measures PyTorch + PEFT and JAX, in turn
with npgpt, if they are installed (extra `peers`).
"""

if __name__ == "__main__":
    from npgpt.commands import start  # before the imports that take time: it handles Ctrl-C during them

    start.begin()

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import peers
from threadpoolctl import threadpool_info

from npgpt.commands import cli
from npgpt.commands.flags import Flag, Parser, threads

STEPS = {"4x64": [64] * 4, "8x128": [128] * 8, "1x1024": [1024], "short": [12, 16, 17, 18, 19, 20, 23, 27]}
DECODES = {"decode": [16], "decode x8": [16] * 8, "decode ragged": [5, 8, 12, 16, 24, 40, 60, 90]}  # prompts
NEW = 64  # tokens a prompt in a decoding run


def case_names():
    return [*(f"step {name}" for name in STEPS), "full 4x64", "medium 8x128", "checkpoint 8x128", *DECODES, "load"]


FLAGS = [
    Flag("cases", f"which of {', '.join(case_names())} to measure (default: all)", default=(), many="*",
         metavar="CASE"),
    Flag("--peers", "also measure the peers that are installed", bool, False),
    Flag("--json", "print one JSON object on each line", bool, False),
    Flag("--threads", "CPU threads (default: all that NumPy's BLAS may use)", threads, metavar="N"),
    Flag("--runs", "how many runs count for each figure", int, 7, least=1),
    Flag("--measure", argparse.SUPPRESS),  # a side: the program starts itself to measure one case of it
]


def parse_arguments(argv):
    parser = Parser(__doc__, FLAGS)
    args = parser.parse(argv)
    for name in args.cases:
        if name not in case_names():
            parser.error(f"case {name!r} is not one of {', '.join(case_names())}")
    return args


def main(args):
    if args.measure:
        print(json.dumps(measure(args.measure, args.cases[0], args.threads, args.runs)))
        return
    sides = ["npgpt", *(peers.installed() if args.peers else ())]
    if not args.json:
        print(describe_machine(args.threads))
        print(f"\n{'case':13} {'side':22} {'tokens/s':>9} {'of limit':>9} {'its time / npgpt':>16} {'peak memory':>12}")
    for case in args.cases or case_names():
        results = {}
        for side in sides:
            command = [sys.executable, __file__, case, "--measure", side, "--runs", str(args.runs)]
            command += ["--threads", str(args.threads)] if args.threads else []
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{case:13} {side:24} failed: {(done.stderr.strip() or str(done.returncode)).splitlines()[-1]}",
                      file=sys.stderr)
                continue
            results[side] = json.loads(done.stdout.splitlines()[-1])
            report(case, side, results, args.json)


def report(case, side, results, as_json):
    """Print one line about one side of a case."""
    figures = results[side]
    if not figures:
        return
    if as_json:
        print(json.dumps({"case": case, "side": side, **figures}), flush=True)
        return
    speed = f"{figures['tokens_per_second']:,.0f}" if "tokens_per_second" in figures else f"{figures['seconds']:.2f} s"
    limit = f"{figures['seconds_limit'] / figures['seconds']:.0%}" if "seconds_limit" in figures else ""
    ours = results.get("npgpt") or figures
    ratio = f"{figures['seconds'] / ours['seconds']:.2f}"
    memory = f"{figures['peak_bytes'] / 1e9:.2f} GB"
    print(f"{case:13} {peers.PEERS.get(side, side):22} {speed:>9} {limit:>9} {ratio:>16} {memory:>12}", flush=True)


def describe_machine(threads):
    from npgpt.runtime.threads import available

    blas = [f"{info['internal_api']} {info['version']}, kernel {info.get('architecture', 'unknown')}"
            for info in threadpool_info() if info["user_api"] == "blas"]
    capped = {name: os.environ[name] for name in ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
              if name in os.environ}
    return (f"Python {platform.python_version()}, NumPy {np.__version__}, {'; '.join(blas)}; "
            f"{threads or available()} threads of {os.cpu_count()} cores\n"
            f"the environment caps {', '.join(f'{k}={v}' for k, v in capped.items()) or 'nothing'}")


def measure(side, case, threads, runs):
    """Measure one case of one side in this process. Returns its figures, or {} for a case the side does not have."""
    kind, _, name = case.partition(" ")
    if side != "npgpt":
        figures = measure_peer(side, STEPS[name], threads, runs) if kind == "step" else {}
    elif kind == "load":
        figures = measure_load()
    elif kind == "decode":
        figures = measure_decode(DECODES[case], runs)
    else:
        figures = measure_step(STEPS[name], kind, threads, runs)
    if figures:
        figures.setdefault("peak_bytes", peak_bytes())
    return figures


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def median_seconds(work, runs, warm_up=2):
    """Median time of work() over `runs` calls, after `warm_up` calls that are not counted."""
    times = []
    for _ in range(warm_up + runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[warm_up:])


def sequences(lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 50257, length) for length in lengths]


def measure_step(lengths, kind, threads, runs):
    """One optimiser step. LoRA r = 8 on c_attn with dropout 0.1 and no other dropout; of kind "full", all weights; of
    kind "medium", on gpt2-medium's shapes; of kind "checkpoint", on those with gradient checkpointing."""
    import npgpt
    from npgpt.runtime.memory import keep_freed_memory
    from npgpt.training.recompute import set_gradient_checkpointing

    keep_freed_memory()  # as finetune.py does
    shape = {"n_layer": 24, "n_head": 16, "n_embd": 1024} if kind in ("medium", "checkpoint") else {}
    model = npgpt.GPT2(npgpt.GPT2Config(embd_pdrop=0, resid_pdrop=0, attn_pdrop=0, **shape), seed=0)
    set_gradient_checkpointing(model, kind == "checkpoint")
    if kind != "full":
        npgpt.add_lora(model, npgpt.LoraConfig())
    optimizer = npgpt.AdamW(model.trainable_parameters())
    batch = npgpt.Batch.from_sequences(sequences(lengths))
    rng = np.random.Generator(np.random.Philox(0))
    seconds = median_seconds(lambda: npgpt.train_step(model, batch, optimizer, rng=rng, threads=threads), runs)
    figures = {"seconds": seconds, "tokens_per_second": sum(lengths) / seconds, "peak_bytes": peak_bytes()}
    return figures | {"seconds_limit": measure_products(model, batch, threads, runs)}


def measure_peer(side, lengths, threads, runs):
    seconds = median_seconds(peers.make_step(side, sequences(lengths), threads), runs)
    return {"seconds": seconds, "tokens_per_second": sum(lengths) / seconds}


def measure_products(model, batch, threads, runs):
    """Median time of the matrix products of a step alone: the same shapes, threads and BLAS, and nothing between.

    Each worker makes its shares of all of them, one after another, and waits for nobody. The results go into buffers
    made beforehand.
    """
    from npgpt.runtime.threads import spread, that_pay, workers

    def make(products):
        for a, b, out in products:
            np.matmul(a, b, out=out)

    with workers(that_pay(model, len(batch.ids), threads)):
        shares = step_products(model, batch)
        return median_seconds(lambda: spread(make, shares), runs)


def step_products(model, batch):
    """Return [[(a, b, out), ...], ...]: the products of one step, forward and backward, that each worker would make.

    What npgpt makes a second time to save memory (attention's scores, the logits of a trained table) is not in them.
    """
    from npgpt.adapters.stack import updates as updates_of
    from npgpt.lora import adapted_layers
    from npgpt.ops.cross_entropy import ROWS, TOKENS
    from npgpt.runtime.shares import even_parts, product_shares
    from npgpt.runtime.threads import crew
    from npgpt.runtime.tiles import query_blocks
    from npgpt.training.recompute import has_gradient_checkpointing

    config, n, adapted = model.config, len(batch.ids), adapted_layers(model)
    C, H, updates, buffers = config.n_embd, config.n_head, adapted and updates_of(model), {}
    parameters, workers = model.parameters(), [[] for _ in range(crew())]

    def array(*shape, of="all"):  # by shape: a buffer used twice is no slower to multiply, and the memory stays small
        return buffers.setdefault((of, shape), np.ones(shape, np.float32))

    def product(a, b):
        """Share a product out, as the operations do."""
        out = array(len(a), b.shape[1], of="results")
        for worker, (rows, columns) in zip(workers, product_shares(len(a), *b.shape), strict=False):
            worker.append((a[rows], b[:, columns], out[rows, columns]))

    def own(k, a, b):
        """A product that worker k makes alone."""
        workers[k].append((a, b, array(*a.shape[:-1], b.shape[-1], of=k)))

    def attention(backward):
        for T in batch.lengths.tolist():
            for queries, keys in query_blocks(T):
                for k, heads in enumerate(even_parts(H, len(workers))):
                    shape = heads.stop - heads.start, queries.stop - queries.start
                    q, K, P = array(*shape, C // H), array(shape[0], keys.stop, C // H), array(*shape, keys.stop)
                    own(k, q, K.swapaxes(1, 2))                             # scores; in the backward pass, dP
                    own(k, P, K)                                            # values; dQ
                    if backward:
                        own(k, P.swapaxes(1, 2), q)                         # dV
                        own(k, P.swapaxes(1, 2), q)                         # dK

    for i in range(config.n_layer):
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            W = parameters[f"h.{i}.{name}.weight"].data
            x, dy = array(n, W.shape[0]), array(n, W.shape[1])
            for _ in range(2 if has_gradient_checkpointing(model) else 1):
                product(x, W)
            if i or name != "attn.c_attn" or not adapted:                   # nothing trains below the first adapter
                product(dy, W.T)
            if f"h.{i}.{name}" in adapted:
                A, B = updates[f"h.{i}.{name}"].lora_A.data, updates[f"h.{i}.{name}"].lora_B.data
                u = array(n, len(A))
                for a, b in ((x, A.T), (u, B.T), (dy, B), (u.T, x), (dy.T, u), *([(u, A)] if i else [])):
                    product(a, b)
            elif not adapted:
                product(x.T, dy)
        for backward in (False, True, *([False] if has_gradient_checkpointing(model) else [])):
            attention(backward)
    head, M = model.head().data, min(ROWS, batch.n_targets)
    for _ in range(0, batch.n_targets, ROWS):
        for k, part in enumerate(even_parts(len(head), len(workers))):
            for start in range(part.start, part.stop, TOKENS):
                table = head[start:min(start + TOKENS, part.stop)]
                h, P = array(M, C), array(M, len(table))
                own(k, h, table.T)
                own(k, P, table)
                if not adapted:
                    own(k, P.T, h)
    return workers


def measure_decode(lengths, runs):
    """Greedy decoding of prompts of these lengths at once; the limit is one reading of every weight for each token of
    a prompt, at the speed of the largest matrix-vector product of the model, the head's."""
    import npgpt

    model = npgpt.GPT2(npgpt.GPT2Config(), seed=0)
    prompts = sequences(lengths)
    seconds = median_seconds(lambda: npgpt.generate_batch(model, prompts, NEW, temperature=0), runs, warm_up=1)
    head, h = model.head().data, np.ones(model.config.n_embd, np.float32)
    per_byte = median_seconds(lambda: head @ h, 20) / head.nbytes
    weights = sum(tensor.data.nbytes for name, tensor in model.parameters().items() if name != "wpe.weight")
    return {"seconds": seconds, "tokens_per_second": NEW * len(prompts) / seconds,
            "seconds_limit": NEW * weights * per_byte}


def measure_load():
    """From starting Python to the first logits of a short prompt, the weights mapped from a file of GPT-2's size."""
    import tempfile

    import npgpt

    with tempfile.TemporaryDirectory() as folder:
        npgpt.GPT2(npgpt.GPT2Config(), seed=0).save_pretrained(folder)
        code = f"import npgpt; npgpt.GPT2.from_pretrained({folder!r}).logits([1, 2, 3, 4, 5, 6, 7, 8])"
        root = os.path.dirname(os.path.dirname(npgpt.__file__))
        seconds = median_seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True, cwd=root), 5)
    return {"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None))))
