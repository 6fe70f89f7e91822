"""Render the site offline, as the publisher would process it, and fail on broken links. Writes only into a temporary folder."""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RENAMED = "output-file is not read"  # nbdev names pages without their number; only the publisher follows


def main() -> int:
    smalldocs = Path(sys.executable).with_name("smalldocs")
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder) / "project"
        shutil.copytree(ROOT / "nbs", top / "nbs", ignore=shutil.ignore_patterns(".*"))
        shutil.copytree(ROOT / "viewpoint_rosetta", top / "viewpoint_rosetta", ignore=shutil.ignore_patterns("assets", "__pycache__"))
        shutil.copy(ROOT / "settings.ini", top)
        code = "from nbdev.serve import proc_nbs\nif __name__ == '__main__': proc_nbs(n_workers=1)"
        done = subprocess.run([sys.executable, "-c", code], cwd=top, text=True, capture_output=True)
        if done.returncode:
            print("the notebooks could not be processed for the site:\n" + done.stderr[-2000:])
            return done.returncode
        check = subprocess.run([smalldocs, "check", "_proc"], cwd=top, text=True, capture_output=True)
        problems = [line for line in check.stdout.splitlines() if RENAMED not in line]
        print(*problems, f"{len(list((top / '_proc').rglob('*.ipynb')))} pages, {len(problems)} problems", sep="\n")
        if keep := os.environ.get("DOCS_OUT"):  # to look at the pages: make docs-check DOCS_OUT=_site
            subprocess.run([smalldocs, "render", "_proc"], cwd=top, check=True, capture_output=True)
            shutil.copytree(top / "_proc" / "_docs", keep, dirs_exist_ok=True)
        return bool(problems or check.returncode > 1)


if __name__ == "__main__":
    sys.exit(main())
