"""Stage 1: from config.json to pairs on disk.

`config` and `prompts` are the settings, `dialogue` is the rule of the conversation, `plan` says
what is to do, `running` does it. Start at `running`.
"""
