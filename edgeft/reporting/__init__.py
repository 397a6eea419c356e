"""The report of a run: versioned JSON for machines, one HTML page and one table for people.

`build` turns the records of `edgeft.types` into the document, `write_json` and `read_json` store it,
`write_html` and `table` show it. The last two read nothing but the document, so that a page can be made again
from a stored report.
"""

from edgeft.reporting.document import SCHEMA, VERSION, build, plain
from edgeft.reporting.page import write_html
from edgeft.reporting.quantization import write_sensitivity
from edgeft.reporting.rows import headings, table
from edgeft.reporting.storage import read_json, write_json

__all__ = [
    "SCHEMA",
    "VERSION",
    "build",
    "headings",
    "plain",
    "read_json",
    "table",
    "write_html",
    "write_json",
    "write_sensitivity",
]
