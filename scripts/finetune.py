"""npgpt finetune, as a script: see npgpt/commands/finetune.py."""

from npgpt.commands import console

if __name__ == "__main__":
    raise SystemExit(console.script("finetune"))
