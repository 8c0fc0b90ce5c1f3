"""Is an answer right, and do two answers mean the same? Rules offline, a local NLI model, or a chat
server with a cache. A failure is None, never a label, and so is an answer that cannot be read.

Start at `judges.make_judge`. `rules` are the offline rules; `statements` finds what an answer
states, `numbers` and `expressions` read it; `checking` holds them against labels by hand.
`entailment` compares meanings, `chat_server` asks a server, `relabelling` labels pairs on disk.
"""
