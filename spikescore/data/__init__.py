"""Questions: one record for all data sets, and the adapters that read publishers' files into it.

Start at `question.Question`. A new set is one function in adapters/ and one line of
`formats.FORMATS`; `reading` turns a file into questions, `files` a file into rows.
"""
