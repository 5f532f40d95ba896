"""plan.json of one output folder, and beside it which options it was made for."""

from __future__ import annotations

from pathlib import Path

from autounet.running.jobs import read_key, write_key
from autounet.schema.errors import RecordError
from autounet.schema.plan import Plan


class PlanFile:
    """The plan as written by the program or edited by a person, who may do so at any time between two commands."""

    def __init__(self, out: Path) -> None:
        self.path, self._key = out / "plan.json", out / "plan.key"

    def load(self) -> Plan | None:
        """None where there is none. Raises RecordError for a file that cannot be read, with the remedy."""
        if not self.path.exists():
            return None
        try:
            return Plan.load(self.path)
        except RecordError as error:
            raise RecordError(f"{error}. To go on, make a new plan with --replan") from None

    def keep(self, plan: Plan, asked: str) -> None:
        """`asked` stands for all that the plan was made for."""
        plan.save(self.path)
        write_key(self._key, f"{plan.edition}:{asked}")

    def keep_changed(self, plan: Plan) -> None:
        """The program's own plan, made for the same as before."""
        self.keep(plan, self.asked)

    def is_edited(self, plan: Plan) -> bool:
        """Whether it differs from the one that the program wrote."""
        return self._known[0] != plan.edition

    @property
    def asked(self) -> str:
        return self._known[1]

    @property
    def _known(self) -> tuple[str, str]:
        edition, _, asked = (read_key(self._key) or "").partition(":")
        return edition, asked
