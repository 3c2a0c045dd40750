//! Failures during a guest's accesses. A failure is logged, or a VMM's operation returns it. After
//! a repetition of the access, the state is the same as without failures.

use super::setup::{Access::*, *};
use super::*;

/// BAR0 is decoded at 0xe000_0000, bus mastering is on.
pub const BOOT: &[Access] = &[
    Read(0x00),
    Write32(0x10, u32::MAX),
    Read(0x10),
    Write32(0x10, 0xe000_0004),
    Write32(0x14, 0),
    Write16(COMMAND, 0x0002),
    Read(COMMAND),
    Write16(COMMAND, 0x0006),
    BarRead(0),
    Write16(EXPRESS_CONTROL, 0x0010),
    Read(EXPRESS_CONTROL),
];

/// The guest programs and unmasks all vectors, then enables MSI-X.
pub const MSIX_AT_ONCE: &[Access] = &[
    BarWrite(TABLE, 0xfee0_0000),
    BarWrite(TABLE + 8, 0x40),
    BarWrite(TABLE + 12, 0),
    BarWrite(TABLE + 32, 0xfee0_0000),
    BarWrite(TABLE + 40, 0x42),
    BarWrite(TABLE + 44, 0),
    BarWrite(TABLE + 64, 0xfee0_0000),
    BarWrite(TABLE + 72, 0x44),
    BarWrite(TABLE + 76, 0),
    Write16(MSIX_CONTROL, 0x8000),
];

/// Like Linux, the guest enables MSI-X masked and adds vectors one by one. It masks one, and
/// unmasks it with another message. It disables MSI-X.
const MSIX_ONE_BY_ONE: &[Access] = &[
    Write16(MSIX_CONTROL, 0xc000),
    BarWrite(TABLE, 0xfee0_0000),
    BarWrite(TABLE + 8, 0x40),
    BarWrite(TABLE + 12, 0),
    Write16(MSIX_CONTROL, 0x8000),
    BarWrite(TABLE + 16, 0xfee0_0000),
    BarWrite(TABLE + 24, 0x41),
    BarWrite(TABLE + 28, 0),
    BarWrite(TABLE + 12, 1),
    BarWrite(TABLE + 8, 0x50),
    BarRead(0x1_8000),
    BarWrite(TABLE + 12, 0),
    BarWrite(TABLE + 32, 0xfee0_0000),
    BarWrite(TABLE + 44, 0),
    BarRead(0x1_8000),
    Write16(MSIX_CONTROL, 0x0000),
];

/// The guest enables two vectors of MSI, masks one, and disables MSI.
const MSI_ON_AND_OFF: &[Access] = &[
    Write32(MSI + 4, 0xfee0_0000),
    Write16(MSI + 12, 0x60),
    Write16(MSI + 2, 0x0011),
    Write32(MSI + 16, 0x2),
    Read(MSI + 20),
    Write32(MSI + 16, 0),
    Write16(MSI + 2, 0x0010),
];

/// The function enters D3, and returns to D0.
const SLEEP: &[Access] = &[Write16(POWER, 3), Read(POWER)];
const WAKE: &[Access] = &[Write16(POWER, 0), Read(POWER)];

struct Scenario {
    name: &'static str,
    shape: Shape,
    before: &'static [&'static [Access]],
    swept: &'static [Access],
}

const fn scenario(
    name: &'static str,
    shape: Shape,
    before: &'static [&'static [Access]],
    swept: &'static [Access],
) -> Scenario {
    Scenario { name, shape, before, swept }
}

const SCENARIOS: &[Scenario] = &[
    scenario("boot", Shape::Dynamic, &[], BOOT),
    scenario("INTx", Shape::Dynamic, &[], &[Write16(COMMAND, 2), Write16(COMMAND, 0)]),
    scenario("MSI", Shape::Dynamic, &[BOOT], MSI_ON_AND_OFF),
    scenario("MSI-X at once", Shape::Dynamic, &[BOOT], MSIX_AT_ONCE),
    scenario("MSI-X at once, NORESIZE", Shape::NoResize, &[BOOT], MSIX_AT_ONCE),
    scenario("MSI-X one by one", Shape::Dynamic, &[BOOT], MSIX_ONE_BY_ONE),
    scenario("MSI-X one by one, NORESIZE", Shape::NoResize, &[BOOT], MSIX_ONE_BY_ONE),
    scenario(
        "from MSI to MSI-X",
        Shape::NoResize,
        &[BOOT, &[Write16(MSI + 2, 0x0011)]],
        MSIX_AT_ONCE,
    ),
    scenario(
        "BAR move",
        Shape::Dynamic,
        &[BOOT],
        &[Write32(0x10, 0xe010_0004), Write32(0x14, 1), Write16(COMMAND, 0), Write16(COMMAND, 6)],
    ),
    scenario("FLR", Shape::Dynamic, &[BOOT, MSIX_AT_ONCE], &[Write16(EXPRESS_CONTROL, 0x8000)]),
    scenario(
        "FLR with MSI",
        Shape::NoResize,
        &[BOOT, &[Write16(MSI + 2, 1)]],
        &[Write16(EXPRESS_CONTROL, 0x8000)],
    ),
    scenario("sleep", Shape::Nvme, &[BOOT], SLEEP),
    scenario("wake", Shape::Nvme, &[BOOT, SLEEP], WAKE),
    scenario("FLR asleep", Shape::Nvme, &[BOOT, SLEEP], &[Write16(EXPRESS_CONTROL, 0x8000)]),
    scenario("reset asleep", Shape::Nvme, &[BOOT, SLEEP], &[Reset]),
    scenario("reset", Shape::NoResize, &[BOOT, MSIX_AT_ONCE], &[Reset]),
    scenario("reset with INTx", Shape::Dynamic, &[BOOT], &[Reset]),
    scenario("reset of the bus", Shape::BusReset, &[BOOT, MSIX_AT_ONCE], &[Reset]),
    scenario("recovery", Shape::NoResize, &[BOOT, MSIX_AT_ONCE], &[Recover]),
    scenario("recovery with INTx", Shape::Dynamic, &[BOOT], &[Recover]),
    scenario("recovery asleep", Shape::Nvme, &[BOOT, SLEEP], &[Recover]),
];

impl Scenario {
    fn setup(&self) -> Setup {
        Setup::new(self.shape, &self.before.concat())
    }

    /// The number of calls, and the read bytes and the state after each access, without failures.
    fn good(&self) -> (u64, Vec<([u8; 4], Picture)>) {
        let setup = self.setup();
        let mut calls = 0;
        let step = |access: &Access| {
            let before = setup.faults.all_made();
            let read = setup.perform(*access).unwrap();
            calls += setup.faults.all_made() - before;
            (read, setup.picture())
        };
        let seen = self.swept.iter().map(step).collect();
        (calls, seen)
    }

    /// Performs all accesses. If a call fails in an access, it checks that the failure is reported,
    /// and that the state is right after a repetition without failures. Returns the last access's
    /// first failed call.
    fn perform(
        &self,
        setup: &Setup,
        fault: Fault,
        good: &[([u8; 4], Picture)],
    ) -> Result<Option<Call>, String> {
        let mut first = None;
        for (access, (good_read, good)) in self.swept.iter().zip(good) {
            let result = setup.perform(*access);
            let calls = setup.faults.failed();
            let Some(call) = calls.first() else {
                check(result? == *good_read, || format!("{access:?} reads wrongly"))?;
                continue;
            };
            first = Some(*call);
            let lines: Vec<_> = lines::taken().into_iter().chain(result.err()).collect();
            let reported = lines.iter().any(|line| names(line, NAME, *call, fault));
            check(reported, || format!("{access:?}: {call:?} is not reported: {lines:?}"))?;
            setup.faults.clear();
            let read = setup.perform(*access)?;
            check(read == *good_read, || format!("{access:?} after {call:?}: read {read:x?}"))?;
            if calls.contains(&Call::PlaceSlot) {
                // The BAR is trapped, and an access does not retry its placement.
                let _ = setup.function.retry_placement();
            }
            let picture = setup.picture();
            check(picture == *good, || {
                format!("{access:?} after {call:?}: {}", picture.difference(good))
            })?;
        }
        Ok(first)
    }

    /// Sweeps over all calls: at each point `together` consecutive calls fail.
    fn sweep(&self, together: u64) -> u64 {
        let (calls, good) = self.good();
        sweep(&format!("{}, {together} together", self.name), calls, |call, fault| {
            let setup = self.setup();
            lines::keep();
            setup.faults.inject(call..call + together, fault);
            let failed = self.perform(&setup, fault, &good)?;
            setup.faults.clear();
            setup.function.shutdown().map_err(|error| error.to_string())?;
            let parts = setup.end();
            let left = (parts.ledger(), parts.holders());
            check(left == Default::default(), || format!("{failed:?}: left: {left:?}"))?;
            Ok(failed)
        })
    }
}

#[test]
fn a_repeated_access_works_after_a_failure() {
    let sweep = |scenario: &Scenario| scenario.sweep(1) + scenario.sweep(3);
    let points: u64 = SCENARIOS.iter().map(sweep).sum();
    println!("guests: {points} points");
    assert!(points > 2500, "{points}");
}

#[test]
fn logs_leaks_of_a_device_that_fails_during_use() {
    let sweep_scenario = |scenario: &Scenario| {
        let setup = scenario.setup();
        let before = setup.faults.all_made();
        scenario.swept.iter().for_each(|access| drop(setup.perform(*access)));
        let calls = setup.faults.all_made() - before;
        sweep(&format!("failing, {}", scenario.name), calls, |call, fault| {
            let setup = scenario.setup();
            lines::keep();
            setup.faults.inject(call..u64::MAX, fault);
            for access in scenario.swept {
                // A VMM logs errors of its operations.
                let result = setup.perform(*access);
                result.map_or_else(|error| log::warn!("{error}"), drop);
            }
            ends::shut_down_failing(setup, fault)
        })
    };
    let points: u64 = SCENARIOS.iter().map(sweep_scenario).sum();
    println!("failing in use: {points} points");
    assert!(points > 1300, "{points}");
}
