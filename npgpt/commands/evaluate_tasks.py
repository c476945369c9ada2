"""What evaluate measures: each task reads its data and says what it is about."""

from npgpt import data
from npgpt.commands.flags import unescaped
from npgpt.evaluation import metrics, questions, tasks
from npgpt.files.atomic import read_text
from npgpt.runtime.errors import NpgptError


def documents_of(args):
    """Return the data.Documents to measure, made as the adapter's run made its own, and what `--val-fraction` says."""
    documents = data.documents_like(args.recipe, args.data, unescaped(args.split), args.separator, args.template)
    return documents, _held_out(documents, args) if args.val_fraction else documents


def _held_out(documents, args):
    """Yield the documents that finetune holds out."""
    for document in documents:
        if any(isinstance(text, data.Stream) for text, _ in document.segments):
            raise NpgptError(f"--val-fraction: {document.where} is one text, of which finetune holds out blocks; "
                             "measure on a file of its own")
        if data.is_held_out(document.key.encode(), args.val_fraction):
            yield document


def special_tokens(args):
    return args.special_tokens or bool(args.recipe and args.recipe.special_tokens)


def perplexity(args, tokenizer, model):
    """Return (task, facts about it for --json, and in words)."""
    longest, template = model.config.n_positions, None
    context = min(args.context or 1024, longest)
    if args.wikitext:
        corpus = tasks.Corpus.of_wikitext(tokenizer, read_text(args.data), args.limit, not args.special_tokens)
        args.protocol = args.protocol or [name for name in tasks.Perplexity.PROTOCOLS if name != "completion"]
    else:
        args.protocol = args.protocol or list(tasks.Perplexity.PROTOCOLS)
        documents, chosen = documents_of(args)
        template = documents.template
        of_run = args.recipe and args.recipe.template == template.text and args.recipe.max_length
        max_length = context if args.context or not of_run else min(of_run, longest)
        corpus = tasks.Corpus.of_documents(tokenizer, chosen, max_length, not special_tokens(args), args.limit)
    stride = context // 2 if args.stride is None else args.stride
    task = tasks.Perplexity(corpus, args.protocol, context, stride)
    about = {"context": context, "stride": stride, "texts": len(corpus.documents), "words": corpus.words,
             "bytes": corpus.bytes, "text_tokens": task.tokens, "predicted": task.predicted,
             "template": template and template.text}
    means = {"disjoint": f"of {context} tokens side by side; the first of each is not predicted",
             "strided": f"of {context} tokens, {stride} apart: each is predicted from {context - stride} or more",
             "document": "each text alone, after an end of text",
             "completion": "each text alone: what finetune learns, and prints as held out"}
    lines = (f"{protocol:10}  {task.predicted[protocol]:,} of {task.tokens[protocol]:,} tokens predicted; windows: "
             f"{task.windows_of[protocol]:,}, {means[protocol]}" for protocol in args.protocol)
    made = f"template    {template}\n" if template is not None and template.text != "{text}" else ""
    return task, about, f"""\
{len(corpus.documents):,} texts, {corpus.words:,} words, {corpus.bytes:,} bytes
{made}{chr(10).join(lines)}
Figures per token compare models with the same tokenizer; figures per word or byte compare any models on this text.
Don't compare figures of different protocols. A token that is not predicted counts as the mean of the others."""


def lambada(args, tokenizer, _model):
    items = questions.read_passages(data.read_records(args.data, args.split))[:args.limit]
    return (questions.LastWord(tokenizer, items, not args.special_tokens), {"items": len(items)},
            f"the last word of {len(items):,} passages")


def multiple_choice(args, tokenizer, _model):
    items = questions.read_questions(data.read_records(args.data))[:args.limit]
    return (questions.MultipleChoice(tokenizer, items, not args.special_tokens), {"items": len(items)},
            f"{len(items):,} questions")


def classification(args, tokenizer, _model):
    items = questions.read_labelled(data.read_records(args.data), args.template or "{text}\nLabel:", args.labels)
    items = items[:args.limit]
    labels = [word.strip() for word in items[0].choices]
    return (questions.Classification(tokenizer, items, not args.special_tokens),
            {"items": len(items), "labels": labels}, f"{len(items):,} texts, labels {', '.join(labels)}")


def answers(measures):
    """The task of writing answers, scored by `measures`."""
    def task(args, tokenizer, _model):
        items = questions.read_prompts(documents_of(args)[1])[:args.limit]
        references = sum(len(item.references) for item in items)
        return (questions.Answers(tokenizer, items, measures, args.max_new_tokens, args.stop,
                                  not special_tokens(args)),
                {"items": len(items), "references": references, "max_new_tokens": args.max_new_tokens,
                 "stop": args.stop}, f"prompts: {len(items):,}, references: {references:,}")
    return task


ANSWERS = ["exact-match", "meaning-to-text"]  # the tasks of writing
TASKS = {
    "perplexity": perplexity,
    "lambada": lambada,
    "multiple-choice": multiple_choice,
    "classification": classification,
    "exact-match": answers({"exact match": (metrics.exact_match_rows, metrics.mean_score)}),
    "meaning-to-text": answers(metrics.METRICS),
}
DATA = """
data:
  any file that finetune reads, or a folder of one split, with these fields:
  perplexity       what finetune learns, in the adapter's own template; with --wikitext a file of WikiText
  lambada          {"text": "..."}; the model has to find its last word
  multiple-choice  {"context": "...", "choices": ["...", "..."], "label": 0}, or HellaSwag's own records
  classification   {"text": "...", "label": "..."}
  exact-match, meaning-to-text
                   what finetune learns: prompt and completion, instruction and output, messages, or text with
                   --separator; all answers to the same prompt are its references
"""
