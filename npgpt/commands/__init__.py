"""The command lines: npgpt COMMAND, python -m npgpt COMMAND, python scripts/COMMAND.py.

Read the files in this order. A file imports only from files above it:

    start.py               before everything else: Ctrl-C during imports, closed streams
    flags.py               Flag: name, type, default and help of a flag, declared once
    printing.py            standard output and standard error, on which no text can do harm
    cli.py                 errors in one line, exit statuses
    console.py             the program npgpt: its commands, and which one to run
    models.py              which model --model names
    settings.py            finetune's flags, files of settings, and what a resumed run may be told
    dataset.py             finetune's data
    adapting.py            what finetune trains: added tokens, adapter, optimizer
    identity.py            what config.json says about a run, and what must be the same if it goes on
    prompts.py             what generate continues: texts, and records in a template
    samples.py             what finetune's samples begin with
    lines.py               every line that finetune prints
    preview.py             finetune --preview
    watch.py               progress bar, and Ctrl-C that waits for the end of a step
    running.py             finetune's training, from the first step to what is saved
    effects.py             settings that cannot take effect in a run
    estimates.py           memory and time of a run, before it starts
    finetune.py            npgpt finetune
    generate.py            npgpt generate
    evaluate_tasks.py      the tasks that evaluate measures
    evaluate.py            npgpt evaluate
    merge.py               npgpt merge
    export_gguf.py         npgpt export-gguf
    convert_adapter.py     npgpt convert adapter
    convert_checkpoint.py  npgpt convert checkpoint
    inspect_adapter.py     npgpt inspect-adapter
    inspect_text.py        npgpt inspect-text
    sweep.py               npgpt sweep
    plot.py                npgpt plot
    gradcheck.py           npgpt gradcheck

A command is a module with FLAGS, parse_arguments(argv) and main(arguments) -> exit status; it has a row in
console.COMMANDS and a script of its name in scripts/. Commands alone read the command line and print.
This room may import from the path and from all other rooms.
"""
