"""Stage 1: from config.json to pairs on disk.

`config` and `prompts` are the settings, `dialogue` is the rule of the conversation, `plan` says
what is to do and whose a folder is, `running` does it, `keeping` holds the turns that a killed run
goes on from, `recorded` reads dialogues on file. Start at `running`.
"""
