"""Where the YAML options of kdbench are."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# A wheel carries conf/ inside the package; a checkout has it at the top.
CONF_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1] / "conf"
