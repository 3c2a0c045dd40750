//! Failures of attach, shutdown and detach: a failed attach leaves nothing, and a function ends
//! despite failures.

use std::collections::BTreeSet;
use std::sync::Arc;

use vfio_passthrough::PassthroughFunction;
use vfio_passthrough::function::Error;
use vfio_passthrough::model::Ledger;

use super::guest::{BOOT, MSIX_AT_ONCE};
use super::setup::*;
use super::*;

const SHAPES: [Shape; 4] = [Shape::Dynamic, Shape::NoResize, Shape::BusReset, Shape::Nvme];

/// One call of attach fails. The error names it. If an area of a BAR cannot be mapped, it is
/// trapped and a line is logged.
fn attach(shape: Shape, call: u64, fault: Fault) -> Result<Option<Call>, String> {
    let parts = Parts::new(shape);
    lines::keep();
    parts.faults.inject(call..call + 1, fault);
    let mappings = map(&parts.iommu);
    let dma_failed = mappings.as_ref().err().map(ToString::to_string);
    let function = parts.attach();
    let error = function.as_ref().err().map(ToString::to_string);
    let failed = parts.faults.failed().first().copied();
    if let Some(failed) = failed {
        let whom = if dma_failed.is_some() { "" } else { NAME };
        let lines: Vec<_> = lines::taken().into_iter().chain(dma_failed).chain(error).collect();
        let reported = lines.iter().any(|line| names(line, whom, failed, fault));
        // With this errno VFIO reports that the device does not have the event.
        let no_event = (failed, fault) == (Call::IrqInfo, Fault::Errno(libc::EINVAL));
        let unheard = no_event && parts.device.heard() == 1;
        check(reported || unheard, || format!("{failed:?} is not reported: {lines:?}"))?;
        let goes_on = failed == Call::Mmap || whom.is_empty() || unheard;
        check(function.is_ok() == goes_on, || format!("{failed:?}: {lines:?}"))?;
    }
    drop((function, mappings));
    parts.faults.clear();
    let left = (parts.ledger(), parts.holders());
    check(left == Default::default(), || format!("{failed:?}: left: {left:?}"))?;
    let again = (map(&parts.iommu).is_ok(), parts.attach().is_ok());
    check(again == (true, true), || format!("{failed:?}: not again: {again:?}"))?;
    Ok(failed)
}

#[test]
fn a_failed_attach_leaves_nothing() {
    let sweep_shape = |shape: Shape| {
        let parts = Parts::new(shape);
        let _mappings = map(&parts.iommu).unwrap();
        let _function = parts.attach().unwrap();
        let calls = parts.faults.all_made();
        sweep(&format!("attach, {shape:?}"), calls, |call, fault| attach(shape, call, fault))
    };
    let points: u64 = SHAPES.into_iter().map(sweep_shape).sum();
    println!("attach: {points} points");
    assert!(points > 830, "{points}");
}

/// A function in use, with MSI-X if `messages`, else with INTx.
fn in_use(shape: Shape, messages: bool) -> Setup {
    let with: &[&[Access]] = if messages { &[BOOT, MSIX_AT_ONCE] } else { &[BOOT] };
    Setup::new(shape, &with.concat())
}

/// The ends of a function with its guest: its device stays open, or is closed.
type End = fn(&PassthroughFunction) -> Result<(), Error>;

const ENDS: [End; 2] = [PassthroughFunction::shutdown, PassthroughFunction::shutdown_before_close];

/// One call of shutdown fails: the error is returned, and nothing is left.
fn shutdown(
    (shape, messages, end): (Shape, bool, End),
    call: u64,
    fault: Fault,
) -> Result<Option<Call>, String> {
    let setup = in_use(shape, messages);
    lines::keep();
    setup.faults.inject(call..call + 1, fault);
    let error = end(&setup.function).err().map(|error| error.to_string());
    let failed = setup.faults.failed().first().copied();
    if let Some(failed) = failed {
        let reported = error.as_ref().is_some_and(|error| names(error, NAME, failed, fault));
        check(reported, || format!("{failed:?} is not reported: {error:?}"))?;
    }
    let parts = setup.end();
    let left = (parts.ledger(), parts.holders());
    check(left == Default::default(), || format!("{failed:?}: left: {left:?}"))?;
    Ok(failed)
}

/// The uses of a function that the sweeps end.
fn uses() -> impl Iterator<Item = (Shape, bool)> {
    SHAPES.into_iter().flat_map(|shape| [(shape, false), (shape, true)])
}

fn calls_of_shutdown(shape: Shape, messages: bool, end: End) -> u64 {
    let setup = in_use(shape, messages);
    let before = setup.faults.all_made();
    end(&setup.function).unwrap();
    setup.faults.all_made() - before
}

#[test]
fn shutdown_completes_despite_one_failure() {
    let sweep_use = |((shape, messages), end)| {
        let calls = calls_of_shutdown(shape, messages, end);
        let name = format!("shutdown, {shape:?}, messages {messages}");
        sweep(&name, calls, |call, fault| shutdown((shape, messages, end), call, fault))
    };
    let both = uses().flat_map(|used| ENDS.map(|end| (used, end)));
    let points: u64 = both.map(sweep_use).sum();
    println!("shutdown: {points} points");
    assert!(points > 760, "{points}");
}

/// Shuts down a function whose calls all fail from some point on. The memory of slots that could
/// not be removed stays, and bound interrupts stay until the device is closed. A line is logged for
/// each.
pub fn shut_down_failing(setup: Setup, fault: Fault) -> Result<Option<Call>, String> {
    let error = setup.function.shutdown().err().map(|error| error.to_string());
    let failed = setup.faults.failed().first().copied();
    let parts = setup.end();
    let lines = lines::taken();
    if let Some(failed) = failed {
        let reported = lines.iter().chain(&error).any(|line| names(line, NAME, failed, fault));
        check(reported, || format!("{failed:?} is not reported: {error:?}, {lines:?}"))?;
    }
    let count = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    let Ledger { mappings, slots, delivered, pins, interrupts, events, .. } = parts.ledger();
    let held = (delivered, pins);
    check(held == (0, 0), || format!("{failed:?}: left: {held:?}"))?;
    // An area can stay in both.
    let areas: BTreeSet<_> = slots.iter().chain(&mappings).collect();
    let stays = (areas.len(), slots.len(), mappings.len());
    let leaked = (parts.holders(), count("the slot at "), count("its memory is leaked"));
    check(leaked == stays, || {
        format!("{failed:?}: {slots:x?} and {mappings:x?} stay, leaked and logged {leaked:?}")
    })?;
    let bound = interrupts.is_some();
    let closing = format!("{NAME}: ");
    let lines_bound = lines.iter().filter(|line| {
        line.starts_with(&closing) && line.contains(" stays bound until the device is closed: ")
    });
    let logged = lines_bound.count() == usize::from(bound) + events;
    check(logged, || format!("{failed:?}: bound {bound} and {events} events, logged {lines:?}"))?;
    // The device is closed, because nothing holds it if no memory was leaked.
    let guest = parts.guest.clone();
    let closed = Arc::into_inner(parts.device).is_some();
    check(closed == areas.is_empty(), || format!("{failed:?}: closed {closed}, with {areas:x?}"))?;
    check(!closed || guest.triggers() == 0, || format!("{failed:?}: eventfds are left"))?;
    Ok(failed)
}

#[test]
fn shutdown_logs_leaks_if_all_calls_fail() {
    let sweep_use = |(shape, messages)| {
        let calls = calls_of_shutdown(shape, messages, PassthroughFunction::shutdown);
        let name = format!("failing, {shape:?}, messages {messages}");
        sweep(&name, calls, |call, fault| {
            let setup = in_use(shape, messages);
            lines::keep();
            setup.faults.inject(call..u64::MAX, fault);
            shut_down_failing(setup, fault)
        })
    };
    let points: u64 = uses().map(sweep_use).sum();
    println!("failing: {points} points");
    assert!(points > 380, "{points}");
}

/// One call of detach fails, or that call and all later ones. The failure is reported, and the
/// device is closed. Memory of slots that could not be removed is leaked, and is not the device's
/// any more.
fn detach(
    shape: Shape,
    messages: bool,
    call: u64,
    until: u64,
    fault: Fault,
) -> Result<Option<Call>, String> {
    let setup = in_use(shape, messages);
    lines::keep();
    setup.faults.inject(call..until, fault);
    let error = setup.function.detach().1.err().map(|error| error.to_string());
    let failed = setup.faults.failed().first().copied();
    setup.faults.clear();
    check(setup.device.is_given_back(), || format!("{failed:?}: the device is not closed"))?;
    if let Some(failed) = failed {
        let reported = error.as_ref().is_some_and(|error| names(error, NAME, failed, fault));
        check(reported, || format!("{failed:?} is not reported: {error:?}"))?;
    }
    let read = setup.perform(Access::BarRead(0))?;
    check(read == [0xff; 4], || format!("{failed:?}: reads {read:x?}"))?;
    let parts = setup.end();
    let Ledger { slots, mappings, .. } = parts.ledger();
    let lines = lines::taken();
    let count = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    let (stay, logged) =
        ((slots.len(), mappings.len()), (count("the slot at "), count("its memory is leaked")));
    check(stay == logged && (stay == (0, 0) || until == u64::MAX), || {
        format!("{failed:?}: {slots:x?} and {mappings:x?} stay, {logged:?} are logged")
    })?;
    let left = Ledger { slots: Vec::new(), mappings: Vec::new(), ..parts.ledger() };
    check((left, parts.holders()) == Default::default(), || {
        format!("{failed:?}: left: {:?}", parts.ledger())
    })?;
    Ok(failed)
}

#[test]
fn detach_closes_the_device_despite_failures() {
    let sweep_use = |(shape, messages)| {
        let setup = in_use(shape, messages);
        let before = setup.faults.all_made();
        setup.function.detach().1.unwrap();
        let calls = setup.faults.all_made() - before;
        let name = format!("detach, {shape:?}, messages {messages}");
        let once =
            sweep(&name, calls, |call, fault| detach(shape, messages, call, call + 1, fault));
        let lasting =
            sweep(&name, calls, |call, fault| detach(shape, messages, call, u64::MAX, fault));
        once + lasting
    };
    let points: u64 = uses().map(sweep_use).sum();
    println!("detach: {points} points");
    assert!(points > 900, "{points}");
}
