"""A chat model at work: token ids in; token ids, log-probabilities and hidden states out.

`engine` runs many dialogues at once, `reading` takes dialogues that exist, `serving` lets a server
answer. It knows nothing of questions or labels. Start at `turns` (the vocabulary), then `engine`.
"""
