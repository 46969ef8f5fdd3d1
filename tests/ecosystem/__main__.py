"""Write the table of the list into docs/ecosystem.md: `python -m tests.ecosystem`."""

from tests.ecosystem import table

table.write()
