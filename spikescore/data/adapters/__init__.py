"""One module a kind of question, one function a publisher's schema: a row in, questions out.

`formats` knows which function takes which row; `fields` reads a row's fields by name.
"""
