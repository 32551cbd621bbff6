"""`python -m pertoken` is the `pertoken` command."""

from __future__ import annotations

from pertoken.cli import main

main(prog_name="pertoken")
