"""`sttm models`."""

from typing import Any

from sttm.cli.app import app
from sttm.cli.options import Json
from sttm.cli.printing import print_rows


@app.command(epilog="Example:  sttm models --json")
def models(as_json: Json = False) -> None:
    """List bundled models, and what each family supports."""
    from sttm.backbones import FAMILIES
    from sttm.models import BUNDLED

    bundled = [{"model": name, "kind": "bundled", "about": about} for name, about in BUNDLED.items()]
    families: list[dict[str, Any]] = [
        {"model": family.example, "kind": "hub id", "family": family.family, "classes": list(family.classes)}
        | family.supports()
        for family in FAMILIES
    ]
    if as_json:
        print_rows("Models", bundled, as_json=[*bundled, *families])
        return
    print_rows("Models", [{"model": row["model"], "about": row["about"]} for row in bundled])
    rows = []
    for row in families:
        what = [name.replace("_", " ") for name, value in row.items() if value is True]
        classes = ", ".join(row["classes"])
        rows.append({"family": row["family"], "example": row["model"], "classes": classes, "supports": ", ".join(what)})
    print_rows("Families (docs/families.md says how to add one)", rows)
