"""Is an answer right, and do two answers mean the same? Rules offline, a local NLI model, or a chat
server with a cache. A failure is None, never a label.

Start at `judges.make_judge`; `rules` are the offline rules, `entailment` compares meanings,
`chat_server` asks a server.
"""
