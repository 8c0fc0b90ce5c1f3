"""The report as one HTML file: tables, plots, and a browser of dialogues. No network, ever.

What stands on the page is described by `Section`, `Table`, `Figure` and `Dialogue`; `write_page`
makes the file. page.html is its frame, page.css its look, page.js the browser of dialogues; Python
puts all three into the file.
"""

from spikescore.report.content import Dialogue, Figure, Section, Table
from spikescore.report.page.writing import write_page

__all__ = ["Dialogue", "Figure", "Section", "Table", "write_page"]
