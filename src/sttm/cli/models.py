"""`sttm models`."""

from sttm.cli.app import app
from sttm.cli.options import Json
from sttm.cli.printing import print_rows


@app.command(epilog="Example:  sttm models --json")
def models(as_json: Json = False) -> None:
    """List bundled models and model families."""
    from sttm.backbones import FAMILIES
    from sttm.models import BUNDLED

    rows = [{"model": name, "kind": "bundled", "about": about} for name, about in BUNDLED.items()]
    for family in FAMILIES:
        about = f"family {family.family}: {', '.join(family.classes)}"
        rows.append({"model": family.example, "kind": "hub id", "about": about})
    print_rows("Models", rows, as_json=rows if as_json else None)
