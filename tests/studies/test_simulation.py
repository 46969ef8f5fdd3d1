"""The simulation of `sttm batch` agrees with what can be said in a formula."""

from __future__ import annotations

from typing import Any

import pytest

CLIPS = 4096


@pytest.fixture
def simulation(study: Any) -> Any:
    return study("harness.simulation")


@pytest.mark.parametrize(
    ("fleet", "clip_s", "full"),
    [
        (dict(decoders=1, models=1, decode_s=0.3, model_s=0.1), 0.3, "decoders"),
        (dict(decoders=6, models=1, decode_s=0.3, model_s=0.1), 0.1, "models"),
        (dict(decoders=16, models=4, decode_s=0.3, model_s=0.1, nodes=2), 0.025, "models"),
        (dict(decoders=6, models=2, decode_s=0.3, model_s=0.1, storage_s=0.2), 0.2, "storage"),
        (dict(decoders=1, models=1, decode_s=0.3, model_s=0.1, cores=1), 0.4, "decoders"),
    ],
)
def test_the_slowest_stage_is_the_rate(simulation: Any, fleet: dict[str, Any], clip_s: float, full: str) -> None:
    outcome = simulation.simulate(simulation.Fleet(**fleet), CLIPS)
    assert outcome.seconds == pytest.approx(CLIPS * clip_s, rel=0.03) and outcome.redone == 0
    assert max(outcome.busy, key=outcome.busy.get) == full
    assert outcome.busy[full] == pytest.approx(0.75 if "cores" in fleet else 1, rel=0.03)


@pytest.mark.parametrize("nodes", [1, 4])
def test_a_lost_node_costs_its_time_and_what_it_had_in_hand(simulation: Any, nodes: int) -> None:
    fleet = simulation.Fleet(decoders=4 * nodes, models=nodes, decode_s=0.3, model_s=0.1, nodes=nodes)
    whole = simulation.simulate(fleet, CLIPS)
    outcome = simulation.simulate(fleet, CLIPS, lost="node", at_s=whole.seconds / 2, back_s=60.0)
    assert 0 < outcome.redone <= (fleet.waiting + fleet.models) * fleet.group
    again = outcome.redone * fleet.model_s / fleet.models
    assert 60 / nodes <= outcome.seconds - whole.seconds + 1e-9 <= 60 / nodes + again + 10


def test_a_lost_driver_costs_the_parts_that_were_not_complete(simulation: Any) -> None:
    fleet = simulation.Fleet(decoders=4, models=1, decode_s=0.3, model_s=0.1, part=1024)
    whole = simulation.simulate(fleet, CLIPS)
    node, driver = (
        simulation.simulate(fleet, CLIPS, lost=what, at_s=whole.seconds * 0.6, back_s=60.0)
        for what in ("node", "driver")
    )
    assert driver.redone - node.redone == pytest.approx(CLIPS * 0.6 % 1024, abs=3 * fleet.group)
    assert driver.seconds > node.seconds > whole.seconds + 60
